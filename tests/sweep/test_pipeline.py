"""CompressionPipeline: the recipe's rows, on a model and data that are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, load_dataset
from transformers import AutoModelForSequenceClassification

import hfcompress
from hfcompress.data.config import DataConfig
from hfcompress.errors import ConfigError, DataError, HfcompressError
from hfcompress.models.loading import weights_hash
from hfcompress.recipes.schema import parse_recipe
from hfcompress.sweep.run import run
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

STEPS: list[Any] = [
    hfcompress.VocabularyConfig(min_count=30),
    hfcompress.ShrinkConfig(macs=0.5, score="magnitude"),
    hfcompress.RecoverConfig(max_steps=2, batch_size=8, learning_rate=1e-2),
    {"quantize": {"backend": "torch"}},
]


def test_the_rows_are_the_recipes(
    model_folder: Path, write_data: Callable[..., Path], tmp_path: Path
) -> None:
    data, model = write_data(rows=60), tiny_bert()
    before = weights_hash(model)
    pipeline = hfcompress.CompressionPipeline(STEPS, latency={"length": 8, "repeats": 1})
    result = pipeline.run(model, tiny_tokenizer(), data, tmp_path / "run")
    assert weights_hash(model) == before
    assert len(result.rows) == 5
    recipe = parse_recipe({
        "model": str(model_folder), "data": str(data), "measure": {"every_step": True},
        "steps": [
            {"vocabulary": {"min_count": 30}}, {"shrink": {"macs": 0.5, "score": "magnitude"}},
            {"recover": {"max_steps": 2, "batch_size": 8, "learning_rate": 1e-2}}, STEPS[3],
        ],
    })  # fmt: skip
    for mine, other in zip(result.rows, run(recipe).rows, strict=True):
        for name in ("weights_hash", "value", "bytes", "compression_ratio", "method"):
            assert mine[name] == other[name]
    assert len(result.processor) < len(tiny_tokenizer())
    folder = result.save(tmp_path / "small")
    found: Any = hfcompress.load(folder)("a good film")
    assert found["label"] in ("LABEL_0", "LABEL_1")
    # Run again, nothing is measured anew and the model is there all the same.
    again = pipeline.run(model, tiny_tokenizer(), data, tmp_path / "run")
    assert again.rows == result.rows
    assert again.model.engine.digest == result.model.engine.digest  # type: ignore[union-attr]


def test_data_sets_by_split_and_a_torch_model_at_the_end(
    write_data: Callable[..., Path], tmp_path: Path
) -> None:
    raw = load_dataset("csv", data_files=str(write_data(rows=60)), delimiter="\t")["train"]
    splits = DatasetDict(train=raw.select(range(40)), validation=raw.select(range(40, 60)))
    pipeline = hfcompress.CompressionPipeline([hfcompress.PruningConfig(sparsity=0.5)])
    result = pipeline.run(tiny_bert(), tiny_tokenizer(), splits)
    assert [row["n"] for row in result.rows] == [20, 20]
    folder = result.save(tmp_path / "pruned")
    back = AutoModelForSequenceClassification.from_pretrained(folder)
    assert weights_hash(back) == result.rows[-1]["weights_hash"]
    with pytest.raises(DataError, match=r"'validation' is not a datasets\.Dataset; give one for"):
        pipeline.run(tiny_bert(), tiny_tokenizer(), {"train": raw, "validation": [1]})


def test_what_is_no_step() -> None:
    with pytest.raises(ConfigError, match=r"steps\[0\] is a DataConfig, not a step"):
        hfcompress.CompressionPipeline([DataConfig(path="x")])
    with pytest.raises(ConfigError, match=r"steps\[0\].quantize leaves no torch model"):
        hfcompress.CompressionPipeline([{"quantize": {}}, {"prune": {}}])


def test_a_step_that_fails_says_why_and_keeps_the_rows_before(
    write_data: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao", None)
    steps: list[Any] = [
        hfcompress.PruningConfig(sparsity=0.5),
        {"quantize": {"backend": "torchao"}},
    ]
    pipeline = hfcompress.CompressionPipeline(steps)
    with pytest.raises(HfcompressError, match="pip install 'hfcompress\\[torchao\\]'"):
        pipeline.run(tiny_bert(), tiny_tokenizer(), write_data(rows=60), tmp_path / "run")
    assert len((tmp_path / "run" / "results.jsonl").read_text().splitlines()) == 2


def test_rows_of_a_dataset_are_enough() -> None:
    rows = {"text": ["a good film", "a bad film"] * 20, "label": [1, 0] * 20}
    data = {"train": Dataset.from_dict(rows)}
    pipeline = hfcompress.CompressionPipeline([hfcompress.VocabularyConfig()])
    result = pipeline.run(tiny_bert(), tiny_tokenizer(), data)
    assert result.rows[0]["n"] == 8  # a fifth of the one split
