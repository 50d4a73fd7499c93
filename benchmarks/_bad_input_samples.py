"""What `bad_input` damages: sound recipes, checkpoints, quantized folders, caches, run folders.

Each folder also holds Python files that nobody may run: they would leave a canary behind.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from benchmarks.rows_recorder import make_inputs, make_tokenizer
from hfcompress.checkpoint.save import save_compressed
from hfcompress.distillation.cache import TeacherCache
from hfcompress.models.sublayers import sublayers
from hfcompress.models.surgery import keep_units
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.prune import prune
from hfcompress.quantization.backends.torch import TorchEngine
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.quantize import quantize

TEXTS = ["the film was good", "a dull cast", "music is the plot of a warm scene"]
CANARY = "canary.txt"
_EVIL = """from pathlib import Path
Path({canary!r}).write_text("code of the input was run")
class EvilConfig: pass
class EvilModel: pass
"""
RECIPE = """\
name: small
model: {model}
data: {{path: {data}, eval_fraction: 0.5}}
steps: [{{prune: {{targets: [Linear]}}}}]
grid: {{prune.sparsity: [0, 0.5]}}
measure: {{also: [f1], precision: fp32}}
"""


def make_samples(root: Path, canary: Path, backends: tuple[str, ...]) -> None:
    """Write all sound samples below a folder.

    Args:
        root: gets ``model``, ``data.tsv``, ``recipes/``, ``checkpoints/``, ``quantized/``,
            ``caches/`` and ``runs/``.
        canary: what code of the input would write.
        backends: engines of the quantized folders.
    """
    make_inputs(root)
    _checkpoints(root)
    for backend in backends:
        _quantized(root, backend)
    _cache(root)
    recipes = root / "recipes"
    recipes.mkdir()
    text = RECIPE.format(model=root / "model", data=root / "data.tsv")
    (recipes / "small.yaml").write_text(text, encoding="utf-8")
    _run(root, recipes / "small.yaml")
    evil = _EVIL.format(canary=str(canary))
    for folder in (recipes, *root.glob("checkpoints/*"), *root.glob("quantized/*")):
        for name in ("evil.py", "modeling_evil.py", "setup.py", "model.py", "sitecustomize.py"):
            (folder / name).write_text(evil, encoding="utf-8")


def _checkpoints(root: Path) -> None:
    tokenizer = make_tokenizer()

    def save(model: Any, name: str, sparse: bool = False) -> None:
        save_compressed(model, root / "checkpoints" / name, sparse)
        tokenizer.save_pretrained(root / "checkpoints" / name)

    save(_bert(root), "plain")
    uneven = _bert(root)
    for place, sublayer in enumerate(sublayers(uneven)):
        keep_units(uneven, sublayer, list(range(3 if sublayer.kind == "heads" else 40 - place)))
    save(uneven, "uneven")
    prune(uneven, PruningConfig(sparsity=0.7))
    save(uneven, "packed", sparse=True)
    save(_int8(uneven), "int8")
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=40, initializer_range=0.2,
    )  # fmt: skip
    vit: Any = ViTForImageClassification(config).train(False)
    save_compressed(_int8(vit), root / "checkpoints" / "image")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(
        root / "checkpoints" / "image"
    )


def _bert(root: Path) -> Any:
    path = root / "model"
    model: Any = BertForSequenceClassification.from_pretrained(path)  # nosec B615 # local
    model.config.id2label = {0: "bad", 1: "good"}
    model.config.label2id = {"bad": 0, "good": 1}
    return model.eval()


def _int8(model: Any) -> Any:
    engine = quantize(model, QuantizationConfig(backend="torch")).engine
    assert isinstance(engine, TorchEngine)
    return engine.model


def _quantized(root: Path, backend: str) -> None:
    tokens = dict(make_tokenizer()(TEXTS, padding=True, return_tensors="pt"))
    config = QuantizationConfig.from_dict({"backend": backend})
    made = quantize(_bert(root), config, [tokens] if config.needs_calibration else [])
    made.save(root / "quantized" / backend, make_tokenizer())


def _cache(root: Path) -> None:
    teacher_cache(root, root / "caches")


def teacher_cache(
    root: Path, folder: Path, damaged: Callable[[str], None] | None = None
) -> TeacherCache:
    """The cache of the samples' model and rows in a folder, built where it is not there."""
    tokenizer = make_tokenizer()
    lines = (root / "data.tsv").read_text(encoding="utf-8").splitlines()[1:25]
    tokens = dict(tokenizer([line.partition("\t")[0] for line in lines]))
    rows = Dataset.from_dict({name: list(value) for name, value in tokens.items()})

    def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        return dict(tokenizer.pad(items, return_tensors="pt"))

    return TeacherCache.build(
        _bert(root), rows, collate, hidden_layers=(1,), batch_size=8, folder=folder,
        damaged=damaged,
    )  # fmt: skip


def _run(root: Path, recipe: Path) -> None:
    from hfcompress.recipes.schema import load_recipe
    from hfcompress.sweep.cache import StepCache
    from hfcompress.sweep.run import run

    run(load_recipe(recipe), root / "runs" / "small", cache=StepCache(root / "step-cache"))


# --- answers -----------------------------------------------------------------------------------


def logits_of(model: Any) -> list[list[float]]:
    """What a checkpoint's model answers to a fixed batch."""
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        if "pixel_values" in model.main_input_name:
            found = model(pixel_values=torch.rand(3, 3, 16, 16, generator=generator)).logits
        else:
            ids = torch.randint(5, 20, (3, 9), generator=generator)
            found = model(input_ids=ids).logits
    answer: list[list[float]] = found.float().tolist()
    return answer


def made_up(model: Any, folder: Path) -> list[str]:
    """The tensors of a model that are not those of its file."""
    stored = load_file(folder / "model.safetensors")
    return [
        name for name, tensor in model.state_dict().items()
        if name not in stored or not torch.equal(
            torch.nan_to_num(tensor), torch.nan_to_num(stored[name].to(tensor.dtype))
        )
    ]  # fmt: skip


def plain_load(folder: Path) -> list[list[float]] | str:
    """What transformers' own ``from_pretrained`` makes of a folder: logits, or the error."""
    image = folder.name == "image"
    kind: Any = AutoModelForImageClassification if image else AutoModelForSequenceClassification
    try:
        return logits_of(kind.from_pretrained(folder).eval())  # nosec B615 # a local folder
    except Exception as error:  # whatever it raises, nothing was loaded
        return f"{type(error).__name__}"


def cache_answers(cache: TeacherCache) -> list[Any]:
    """All that a cache holds."""
    found = cache.lookup(list(range(len(cache))))
    states = [found.hidden_states[layer] for layer in sorted(found.hidden_states)]
    return [tensor.tolist() for tensor in (found.logits, *states)]


def same(found: object, expected: object) -> bool:
    """Whether two answers of plain data are equal but for rounding."""
    if isinstance(expected, list) and isinstance(found, list):
        numbers, others = _array(expected), _array(found)
        if numbers is not None and others is not None:
            return numbers.shape == others.shape and np.allclose(numbers, others, atol=1e-6)
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, dict) and isinstance(found, dict):
        return found.keys() == expected.keys() and all(
            same(found[key], expected[key]) for key in expected
        )
    return found == expected


def _array(data: list[Any]) -> Any:
    try:
        array = np.asarray(data)
    except ValueError:  # ragged
        return None
    return array if array.dtype.kind == "f" else None


def copied(source: Path, target: Path) -> Path:
    """A copy of a sample, to be damaged."""
    shutil.copytree(source, target)
    return target


def choose_file(folder: Path, draw: random.Random, weights: dict[str, float]) -> Path:
    """One of a folder's files, the named ones more often; none of the planted Python files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".py")
    return draw.choices(files, [weights.get(path.suffix, 1.0) for path in files])[0]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's folder without what differs from run to run."""
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return [{key: row.get(key) for key in ("hash", "index", "value", "settings")} for row in rows]
