"""``certify`` compares any two models on labelled rows, by the names of their labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hfcompress.cli.commands import main
from hfcompress.data.config import DataConfig
from hfcompress.errors import ConfigError, ModelError
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.quantize import quantize
from hfcompress.search.certify import certify
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

NAMES = {0: "bad", 1: "good"}


def saved(folder: Path, names: dict[int, str] | None = None) -> Path:
    """A model that answers either class, with its tokenizer."""
    model = tiny_bert()
    if names is not None:
        model.config.id2label = names
        model.config.label2id = {name: number for number, name in names.items()}
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def swapped(folder: Path, source: Path, names: dict[int, str]) -> Path:
    """The same model with its classes in the other order, under some names."""
    model = tiny_bert().from_pretrained(source)
    with torch.no_grad():
        for parameter in (model.classifier.weight, model.classifier.bias):
            parameter.copy_(parameter.flip(0))
    model.config.id2label = names
    model.config.label2id = {name: number for number, name in names.items()}
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path, write_data: Callable[..., Path]) -> DataConfig:
    path = write_data("test.tsv", rows=60)
    text = path.read_text().replace("\t0\n", "\tbad\n").replace("\t1\n", "\tgood\n")
    path.write_text(text)
    return DataConfig(path=str(path), text="sentence", eval_fraction=0.5)


def test_a_model_loses_nothing_against_itself_in_another_order(
    tmp_path: Path, rows: DataConfig
) -> None:
    dense = saved(tmp_path / "dense", NAMES)
    small = swapped(tmp_path / "small", dense, {0: "GOOD", 1: "Bad"})
    found = certify(dense, small, rows, max_drop=20)
    assert (found.lost, found.gained, found.n) == (0, 0, 60)
    assert found.certain


def test_a_quantized_folder_is_compared_with_its_model(tmp_path: Path, rows: DataConfig) -> None:
    dense = saved(tmp_path / "dense", NAMES)
    other = swapped(tmp_path / "other", dense, NAMES)
    model = tiny_bert().from_pretrained(other)
    folder = quantize(model, QuantizationConfig(backend="torch")).save(
        tmp_path / "int8", tiny_tokenizer()
    )
    against_int8 = certify(dense, folder, rows, max_drop=50)
    against_fp32 = certify(dense, other, rows, max_drop=50)
    assert against_int8.n == against_fp32.n == 60
    assert against_fp32.lost + against_fp32.gained == 60  # it says the other class everywhere
    np.testing.assert_allclose(against_int8.drop, against_fp32.drop, atol=2 / 60)


def test_refuses_labels_that_do_not_correspond(tmp_path: Path, rows: DataConfig) -> None:
    dense = saved(tmp_path / "dense", NAMES)
    small = saved(tmp_path / "small", {0: "cat", 1: "dog"})
    with pytest.raises(ModelError, match=r"the data have 2 .bad, good. and the model 2 .cat, dog."):
        certify(dense, small, rows)


def test_refuses_points_out_of_range(tmp_path: Path, rows: DataConfig) -> None:
    with pytest.raises(ConfigError, match="max_drop must be points from 0 to 100, not -1"):
        certify(tmp_path, tmp_path, rows, max_drop=-1)


def test_the_exit_code_says_whether_it_is_certain(
    tmp_path: Path, rows: DataConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = saved(tmp_path / "dense", NAMES)
    command = ["certify", str(dense), str(dense), "--data", rows.path, "--set", "text=sentence"]
    assert main([*command, "--max-drop", "45"]) == 0
    assert "at most 45.0 points are lost, 95% sure, on 60 rows" in capsys.readouterr().out
    assert main(command) == 1
    assert "not certain with 60 rows; about" in capsys.readouterr().out
