"""Record the rows of small runs before a refactoring, and hold the code to them after it.

    python -m benchmarks.rows_recorder record FOLDER   # before: runs, step cache, saved models
    python -m benchmarks.rows_recorder check FOLDER    # after: the same rows, all of it still read

``check`` runs the same recipes with a step cache of its own and compares every row (hashes,
settings, metrics, hashes of weights; no times), then with the recorded cache, from which every
step that was kept must come; it reloads every recorded model and compares logits, and draws the
recorded run folders again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

import hfcompress
from hfcompress.sweep.run import report

TIMES = {"seconds", "timings", "latency", "seconds_each"}
GOOD, BAD = ["good", "fine", "lovely", "bright"], ["bad", "dull", "weak", "grim"]
FILLER = ["film", "story", "cast", "scene", "plot", "music", "the", "a", "is", "was"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FINETUNE = {"finetune": {"max_steps": 6, "learning_rate": 1e-2}}
VIT = {
    "config": {
        "model_type": "vit", "num_channels": 1, "patch_size": 2, "hidden_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    },
    "image_size": 8,
}  # fmt: skip
RESNET = {
    "config": {
        "model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16],
        "depths": [1, 1], "layer_type": "basic",
    },
    "image_size": 8,
}  # fmt: skip
DIGITS = {"path": "pkg://sklearn/datasets/data/digits.csv.gz", "max_train": 128, "max_eval": 64}

# The defaults of alps when the first rows were recorded.
FORMER_ALPS = {"iterations": 60, "damping": 0.01, "output_importance": 0, "token_importance": 0}

RECIPES: dict[str, dict[str, Any]] = {
    "quickstart": {
        "steps": [FINETUNE, {"prune": {"method": "magnitude"}}],
        "grid": {"prune.scope": ["layer", "global"], "prune.sparsity": [0, 0.5, 0.8]},
        "save_models": True,
    },
    "oneshot": {
        "steps": [
            FINETUNE,
            {
                "prune": {
                    "sparsity": 0.6, "calibration_rows": 16, "allocation": "uniform",
                    "alps": FORMER_ALPS,
                }
            },
        ],
        "grid": {"prune.method": ["wanda", "sparsegpt", "alps", "obert"]},
        "save_models": True,
        "save_sparse": True,
    },
    "recover": {
        "steps": [
            FINETUNE,
            {"prune": {"method": "magnitude", "sparsity": 0.5}},
            {"recover": {"max_steps": 3, "distillation": {"temperature": 2.0}}},
        ],
    },
    "gradual": {
        "steps": [
            FINETUNE,
            {"gradual": {"epochs": 2, "pruning": {"method": "magnitude", "sparsity": 0.5}}},
        ],
    },
    "shrink": {
        "steps": [FINETUNE, {"shrink": {"macs": 0.5, "calibration_rows": 16}}],
        "save_models": True,
    },
    "shrink-rounds": {
        "steps": [
            FINETUNE,
            {"shrink": {"score": "taylor", "macs": 0.5, "rounds": 2, "calibration_rows": 16}},
        ],
    },
    "distill": {
        "steps": [
            FINETUNE,
            {
                "distill": {
                    "max_steps": 4, "student": {"layers": 1},
                    "distillation": {"hidden_weight": 1.0},
                }
            },
        ],
        "save_models": True,
    },
    "quantize": {
        "steps": [FINETUNE, {"quantize": {"backend": "torch"}}],
        "grid": {"quantize.backend": ["torch", "onnxruntime"]},
        "save_models": True,
    },
    "pipeline": {
        "steps": [
            FINETUNE,
            {"vocabulary": {"min_count": 1}},
            {"shrink": {"macs": 0.6, "calibration_rows": 16}},
            {"distill": {"max_steps": 3, "cache": True}},
            {"prune": {"method": "sparsegpt", "sparsity": 0.3, "calibration_rows": 16}},
            {"recover": {"max_steps": 3}},
            {"quantize": {"backend": "onnxruntime"}},
        ],
        "measure": {"every_step": True},
        "save_models": True,
    },
    "vision-quickstart": {
        "model": VIT, "task": "image-classification", "data": DIGITS,
        "steps": [{"finetune": {"max_steps": 8, "learning_rate": 2e-3}}, {"prune": {}}],
        "grid": {"prune.method": ["magnitude", "wanda"], "prune.sparsity": [0, 0.5]},
        "save_models": True,
    },
    "vision-channels": {
        "model": RESNET, "task": "image-classification", "data": DIGITS,
        "steps": [
            {"finetune": {"max_steps": 8, "learning_rate": 2e-3}},
            {"shrink": {"macs": 0.6, "calibration_rows": 32}},
        ],
        "save_models": True,
    },
}  # fmt: skip


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *GOOD, *BAD, *FILLER])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=64,
    )  # fmt: skip


def make_inputs(folder: Path) -> tuple[Path, Path]:
    """A tiny BERT with its tokenizer, and a table of learnable sentences."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(GOOD) + len(BAD) + len(FILLER), hidden_size=32,
        num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    model = folder / "model"
    BertForSequenceClassification(config).save_pretrained(model)
    make_tokenizer().save_pretrained(model)
    generator = random.Random(0)
    lines = ["sentence\tlabel"]
    for index in range(120):
        words = generator.choices(FILLER, k=generator.randint(2, 8))
        words += generator.choices(GOOD if index % 2 else BAD, k=1)
        generator.shuffle(words)
        lines.append(f"{' '.join(words)}\t{index % 2}")
    data = folder / "data.tsv"
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return model, data


def run_all(folder: Path, cache: Path) -> dict[str, Any]:
    """Run every recipe; the rows, the notes of kept steps and the digests of predictions."""
    os.environ["HFCOMPRESS_CACHE"] = str(cache)
    torch.set_num_threads(1)
    if not (folder / "model").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        make_inputs(folder)
    found: dict[str, Any] = {}
    for name, recipe in RECIPES.items():
        data = {"path": str(folder / "data.tsv"), "eval_fraction": 0.5}
        whole = {"name": name, "model": str(folder / "model"), "data": data, **recipe}
        whole["measure"] = {"precision": "fp32", "also": ["f1"], **whole.get("measure", {})}
        if whole.get("task"):
            whole["measure"]["also"] = []
        output = folder / "runs" / name
        shutil.rmtree(output, ignore_errors=True)
        result = hfcompress.run(hfcompress.Recipe(**whole), output)
        assert not result.failures, result.failures
        found[name] = {
            "rows": [without_times(row) for row in result.rows],
            "predictions": digests(output / "predictions"),
            "models": dict(reloaded(output / "models")),
        }
        print(f"{name}: {len(result.rows)} rows", flush=True)
    return found


def without_times(data: Any) -> Any:
    """Plain data as JSON gives it back, without what differs from run to run."""
    data = json.loads(json.dumps(data))
    if isinstance(data, dict):
        return {key: without_times(value) for key, value in data.items() if key not in TIMES}
    return [without_times(item) for item in data] if isinstance(data, list) else data


def digests(folder: Path) -> dict[str, str]:
    """A digest of every file of tensors, by name."""
    return {
        file.name: hashlib.sha256(
            b"".join(np.ascontiguousarray(value).tobytes() for _, value in sorted(
                load_file(str(file)).items()))
        ).hexdigest()[:16]
        for file in sorted(folder.glob("*.safetensors"))
    }  # fmt: skip


def reloaded(folder: Path) -> Iterator[tuple[str, list[list[float]]]]:
    """The logits of every saved model, loaded as a user would."""
    for model in sorted(folder.glob("*")):
        yield model.name, logits_of(model)


def logits_of(folder: Path) -> list[list[float]]:
    """Logits of four fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") in ("vit", "resnet"):
        inputs = {"pixel_values": torch.rand(4, 1, 8, 8, generator=generator)}
        kind: Any = AutoModelForImageClassification
    else:
        ids = torch.randint(1, 5, (4, 9), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        kind = AutoModelForSequenceClassification
    if (folder / "hfcompress.json").is_file():
        predictor = hfcompress.load(folder)
        texts = ["a good film", "dull plot", "the story is weak and grim", "music"]
        return _rounded(predictor.scores(texts))
    with torch.no_grad():
        logits = kind.from_pretrained(folder).eval()(**inputs).logits
    return _rounded(logits)


def _rounded(values: Any) -> list[list[float]]:
    rounded: list[list[float]] = np.asarray(values, dtype=np.float64).round(5).tolist()
    return rounded


def differences(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Where two pieces of plain data differ; numbers may differ by rounding alone."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            if key not in after:
                yield f"{place}.{key} is gone"
            elif key in before:  # a new key is no difference
                yield from differences(before[key], after[key], f"{place}.{key}")
    elif isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            yield f"{place} has {len(after)} entries, had {len(before)}"
        for index, (one, other) in enumerate(zip(before, after, strict=False)):
            yield from differences(one, other, f"{place}[{index}]")
    elif isinstance(before, float) and isinstance(after, (int, float)):
        if abs(before - after) > 1e-5 * max(1.0, abs(before)):
            yield f"{place} is {after}, was {before}"
    elif before != after:
        yield f"{place} is {after!r}, was {before!r}"


def check(folder: Path) -> list[str]:
    """Everything in which the code now differs from the recording."""
    recorded = json.loads((folder / "recorded.json").read_text(encoding="utf-8"))
    wrong = [f"{name}: {text}" for name in recorded for text in _read_again(folder, recorded, name)]
    kept = sorted(entry.name for entry in (folder / "cache" / "steps").iterdir())
    fresh = folder.with_name(f"{folder.name}-now")
    shutil.rmtree(fresh, ignore_errors=True)
    for part, cache in (("new cache", fresh / "cache"), ("recorded cache", folder / "cache")):
        now = run_all(fresh, cache)
        for name, before in recorded.items():
            wrong += [f"{part}: {name}{text}" for text in differences(before, now[name])]
    after = sorted(entry.name for entry in (folder / "cache" / "steps").iterdir())
    wrong += [f"{name} was trained anew" for name in after if name not in kept]
    return wrong


def _read_again(folder: Path, recorded: dict[str, Any], name: str) -> Iterator[str]:
    run = folder / "runs" / name
    for model, logits in reloaded(run / "models"):
        yield from differences(recorded[name]["models"][model], logits, f"{name}/{model}")
    rows = [without_times(row) for row in report(run)]
    yield from differences(recorded[name]["rows"], rows, f"{name} read again")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["record", "check"])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder
    if arguments.what == "check":
        wrong = check(folder)
        print("\n".join(wrong) or "the same rows; caches, models and runs are read")
        return 1 if wrong else 0
    recorded = run_all(folder, folder / "cache")
    (folder / "recorded.json").write_text(json.dumps(recorded), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
