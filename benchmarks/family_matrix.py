"""Every classifier family of the installed transformers x every verb, on tiny random models.

    python -m benchmarks.family_matrix [--json FILE] [FAMILY ...]

Each family is built tiny from its config's defaults and given to `hfcompress.check`: works, refused
(in a sentence, with the model untouched), fails, or not built. The table is written to
docs/families.md. A family runs in a process that others share; one that dies takes its family only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
ENGINES = ("torch", "onnxruntime")
VERBS = ("prune", "shrink", "student", *(f"quantize {engine}" for engine in ENGINES))
SECONDS = 600  # for one family
# Fields of configs and what makes a model tiny.
_WIDTHS = dict.fromkeys(
    ("hidden_size", "d_model", "dim", "n_embd", "embedding_size", "emb_dim", "embed_dim",
     "decoder_hidden_size", "word_embed_proj_dim", "projection_dim"), 32,
)  # fmt: skip
_DEPTHS = dict.fromkeys(
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
     "num_decoder_layers", "num_blocks"), 2,
)  # fmt: skip
_HEADS = dict.fromkeys(
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
     "decoder_attention_heads", "num_key_value_heads", "attention_heads"), 4,
)  # fmt: skip
_NEURONS = dict.fromkeys(
    ("intermediate_size", "hidden_dim", "d_ff", "d_inner", "encoder_ffn_dim", "decoder_ffn_dim",
     "n_inner", "ffn_dim", "dff", "moe_intermediate_size", "shared_expert_intermediate_size"), 64,
)  # fmt: skip
_OTHERS = {
    "vocab_size": 128, "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64,
    "d_kv": 8, "head_dim": 8, "d_head": 8, "num_experts": 4, "num_local_experts": 4, "max_depth": 4,
}  # fmt: skip
_TINY = {**_WIDTHS, **_DEPTHS, **_HEADS, **_NEURONS, **_OTHERS}
_FIXED = {"window_size": 2, "pooler_hidden_size": 32, "num_groups": 8}
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id")


def families() -> dict[str, str]:
    """Family and class of every classifier: name -> class name."""
    from transformers.models.auto import modeling_auto as auto

    found: dict[str, str] = {}
    mappings: Sequence[Any] = (
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )
    for mapping in mappings:
        for name, classes in mapping.items():
            first = classes if isinstance(classes, str) else classes[0]
            found[f"{name} (image)" if name in found else name] = first
    return found


def tiny_fields(config: Any) -> dict[str, Any]:
    """The fields of a config that make its model tiny, with those of the configs inside it."""
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if hasattr(value, "to_diff_dict"):
            if inner := tiny_fields(value):
                found[name] = inner
        elif (tiny := _tiny(name, value, config)) is not None and tiny != value:
            found[name] = tiny
    if "width_coefficient" in found:
        found["hidden_dim"] = 320  # a quarter of the width
    return found


def _tiny(name: str, value: Any, config: Any) -> Any:
    """A tiny value of a field; None where it stays."""
    if isinstance(value, (list, tuple)):
        if name in ("depths", "depth"):
            return type(value)([1] * len(value))
        if name in ("hidden_sizes", "embed_dim", "neck_hidden_sizes"):
            return type(value)(max(16, item // 4 // 8 * 8) for item in value)
        if name in ("num_heads", "num_attention_heads"):
            return type(value)([2] * len(value))
        return None
    if name in ("width_coefficient", "depth_coefficient"):
        return 0.25 if name.startswith("width") else 0.1
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    if name == "image_size" and value > 64:
        patch = getattr(config, "patch_size", 16)
        return 4 * patch if isinstance(patch, int) and patch > 8 else 64
    if name in _TOKENS and value >= 128:
        return 1
    if name in _FIXED:
        return _FIXED[name]
    return min(value, _TINY[name]) if name in _TINY else None


def build(name: str, architecture: str) -> Any:
    """A tiny random model of a family, in eval mode."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    kind = CONFIG_MAPPING[name.removesuffix(" (image)")]
    config = kind(**tiny_fields(kind()))
    if getattr(config, "pad_token_id", 0) is None:
        config.pad_token_id = 0
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0
    config.num_labels = 3
    model: Any = getattr(transformers, architecture)(config)
    if sum(parameter.numel() for parameter in model.parameters()) > 20_000_000:
        raise ValueError("more than 20 million parameters")
    return model.train(False)


def row_of(name: str, architecture: str) -> dict[str, Any]:
    """The cells of one family."""
    import torch

    from hfcompress.benchmarking.check import check
    from hfcompress.inference import call_model, logits_in
    from hfcompress.models.loading import weights_hash
    from hfcompress.quantization.onnx_export import example_inputs

    row: dict[str, Any] = {"family": name, "class": architecture}
    try:
        model = build(name, architecture)
        with torch.no_grad():
            logits = logits_in(call_model(model, example_inputs(model, 2, 16)))
        if logits.dim() != 2 or not logits.isfinite().all():
            raise ValueError("no finite logits of shape (rows, classes)")
    except Exception as error:  # any: the family is not built
        return {**row, "not_built": f"{type(error).__name__}: {error}".splitlines()[0][:160]}
    before = weights_hash(model)
    report = check(model, engines=ENGINES)
    row["untouched"] = weights_hash(model) == before
    row["verbs"] = {
        verb.verb: {"status": verb.status, "reason": verb.reason[:300]} for verb in report.verbs
    }
    return row


def work() -> None:
    """Print a row for each family that is read from standard input."""
    warnings.filterwarnings("ignore")
    from hfcompress.utils import quiet_libraries

    quiet_libraries()
    known = families()
    for line in sys.stdin:
        name = line.strip()
        print("ROW " + json.dumps(row_of(name, known[name])), flush=True)


def rows(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of families, from worker processes."""
    known, left = families(), list(names)
    while left:
        worker = subprocess.Popen(  # nosec B603 # this module
            [sys.executable, "-m", "benchmarks.family_matrix", "--worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert worker.stdin is not None
        assert worker.stdout is not None
        while left and worker.poll() is None:
            worker.stdin.write(left[0] + "\n")
            worker.stdin.flush()
            row = _answer(worker)
            name = left.pop(0)
            if row is None:
                worker.kill()
                yield {"family": name, "class": known[name], "not_built": "its process died"}
                break
            yield row
        worker.kill()


def _answer(worker: subprocess.Popen[str]) -> dict[str, Any] | None:
    import select

    assert worker.stdout is not None
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and worker.poll() is None:
        if not select.select([worker.stdout], [], [], 1.0)[0]:
            continue
        line = worker.stdout.readline()
        if line.startswith("ROW "):
            found: dict[str, Any] = json.loads(line[4:])
            return found
    return None


def page(found: Sequence[dict[str, Any]]) -> str:
    """The text of docs/families.md."""
    import transformers

    built = [row for row in found if "verbs" in row]
    lines = [
        "# Families and verbs",
        "",
        f"Every text and image classifier family of transformers {transformers.__version__}, built",
        "tiny from its config with random weights, and what `hfcompress check` says of it: a verb",
        "**works** (its result was saved, loaded with plain `from_pretrained` and gave the same",
        "logits), is **refused** in a sentence with the model untouched, or **fails**. Written by",
        "`python -m benchmarks.family_matrix`.",
        "",
        "| verb | works | refused | fails |",
        "|---|---|---|---|",
    ]
    for verb in VERBS:
        states = [row["verbs"][verb]["status"] for row in built]
        counts = " | ".join(str(states.count(state)) for state in ("works", "refused", "fails"))
        lines.append(f"| {verb} | {counts} |")
    lines += ["", f"| family | {' | '.join(VERBS)} |", "|---|" + "---|" * len(VERBS)]
    for row in built:
        cells = " | ".join(row["verbs"][verb]["status"] for verb in VERBS)
        lines.append(f"| {row['family']} | {cells} |")
    lines += ["", f"Not built ({len(found) - len(built)}):", ""]
    lines += [f"- {row['family']}: {row['not_built']}" for row in found if "verbs" not in row]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "families",
        nargs="*",
        metavar="FAMILY",
        help="which; default: all. Rows of others stay as they are in --json",
    )
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work()
        return
    found = []
    for row in rows(arguments.families or list(families())):
        found.append(row)
        cells = row.get("not_built") or ", ".join(
            f"{verb} {cell['status']}"
            + (f" ({cell['reason']})" if cell["status"] == "fails" else "")
            for verb, cell in row["verbs"].items()
        )
        print(f"{row['family']:24} {cells}", flush=True)
    new = {row["family"]: row for row in found}
    if arguments.families and arguments.json and arguments.json.is_file():
        known = json.loads(arguments.json.read_text(encoding="utf-8"))["rows"]
        found = [new.get(row["family"], row) for row in known]
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": found}, indent=1) + "\n", encoding="utf-8")
    if not arguments.families or len(found) > len(new):
        PAGE.write_text(page(found), encoding="utf-8")
    wrong = [row["family"] for row in found if not row.get("untouched", True)]
    print(f"changed by a check: {', '.join(wrong) or 'none'}")


if __name__ == "__main__":
    main()
