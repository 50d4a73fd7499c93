"""Files for phones: one row of one shape; the engines themselves where they are installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import hfcompress
from hfcompress.errors import ConfigError, DataError
from hfcompress.inference import dense_logits
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.engine import Arrays
from hfcompress.quantization.example_script import example_script
from hfcompress.quantization.image_script import image_script
from hfcompress.quantization.inputs import as_batches, as_classifier
from hfcompress.quantization.phone import RowEngine, modules_of_sizes, static_rows
from hfcompress.quantization.quantize import quantize
from tests.plain_networks import NETWORKS
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

PHONES = {"executorch": "executorch", "litert": "litert_torch"}
MODES = ("none", "dynamic", "static")


class Sums(RowEngine):
    """The logits of a row are its inputs' sums."""

    name = "sums"
    inputs = ("input_ids", "attention_mask")
    shapes = {"input_ids": (1, 5), "attention_mask": (1, 5)}  # noqa: RUF012
    pad_id = 7

    def run_row(self, row: Arrays) -> NDArray[np.float32]:
        assert all(array.dtype == np.int32 for array in row.values())
        sums = [row["input_ids"].sum(1), row["attention_mask"].sum(1)]
        return np.stack(sums, 1).astype(np.float32)


def test_rows_are_padded_to_the_files_length() -> None:
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    found = Sums().logits({"input_ids": ids, "attention_mask": mask})
    assert found.tolist() == [[6 + 14, 3], [15 + 14, 2]]
    assert Sums().length == 5
    assert Sums().logits({"input_ids": ids}).tolist() == [[20, 3], [29, 3]]
    with pytest.raises(DataError, match=r"reads input_ids of shape \[5\] and a row has \[6\]"):
        Sums().logits({"input_ids": np.ones((1, 6), np.int64)})


def test_examples_fix_the_shape_and_texts_fill_it() -> None:
    model = tiny_bert()
    long, short = torch.randint(5, 25, (2, 9)), torch.randint(5, 25, (1, 4))
    batches = as_batches([{"input_ids": short}, {"input_ids": long}], model)
    rows = static_rows(model, batches, 2)
    assert [row["input_ids"].shape for row in rows] == [(1, 9), (1, 9)]
    assert rows[0]["attention_mask"].sum() == 4
    drawn = static_rows(model, [], 3)
    assert len({row["input_ids"].shape for row in drawn}) == 1
    network = NETWORKS["conv1d and gru"]
    plain = network.model()
    arrays = as_batches(network.loader(), plain)
    (row,) = static_rows(as_classifier(plain, arrays), arrays, 1)
    assert row["signal"].shape == (1, 1, 30)


def test_integers_of_a_file_are_matched_with_modules() -> None:
    model = NETWORKS["mlp"].model()
    assert modules_of_sizes(model, [12 * 32, 24 * 3], ()) == {"first", "last"}
    assert modules_of_sizes(model, [12 * 32], {"first"}) == set()


@pytest.mark.parametrize("backend", PHONES)
def test_a_missing_engine_says_how_to_install_it(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("executorch.exir", "executorch", "litert_torch"):
        monkeypatch.setitem(sys.modules, name, None)
    config = QuantizationConfig.from_dict({"backend": backend})
    with pytest.raises(ImportError, match=rf"pip install 'hfcompress\[{backend}\]'"):
        quantize(NETWORKS["mlp"].model(), config, NETWORKS["mlp"].loader())


def test_litert_refuses_what_needs_names_of_modules() -> None:
    with pytest.raises(ConfigError, match=r"exclude is an option of .*, not of litert"):
        QuantizationConfig(backend="litert", exclude=("first",))


@pytest.mark.parametrize("backend", PHONES)
def test_example_scripts_compile(backend: str) -> None:
    for images in (True, False):
        script = image_script(backend) if images else example_script(backend)
        compile(script, "example.py", "exec")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", PHONES)
def test_a_file_gives_the_modules_answers(backend: str, mode: str, tmp_path: Path) -> None:
    pytest.importorskip(PHONES[backend])
    network = NETWORKS["mlp"]
    model = network.model()
    config = QuantizationConfig.from_dict({"backend": backend, "mode": mode})
    small = quantize(model, config, network.loader(64))
    x, _ = network.rows(200, seed=5)
    expected = dense_logits(model, {"x": x})
    loaded = hfcompress.load(small.save(tmp_path / "folder"))
    found = loaded.logits({"x": x.numpy()})
    np.testing.assert_array_equal(found, small.logits({"x": x}))
    error = np.abs(found - expected).mean() / expected.std()
    assert error < {"none": 1e-4, "dynamic": 0.05, "static": 0.15}[mode]
    assert (small.coverage.share_of_bytes > 0.9) == (mode != "none")


@pytest.mark.parametrize("backend", PHONES)
def test_a_folder_of_texts_runs_alone(backend: str, tmp_path: Path) -> None:
    pytest.importorskip(PHONES[backend])
    model = tiny_bert()
    ids = torch.randint(5, 25, (8, 9))
    config = QuantizationConfig.from_dict({"backend": backend, "mode": "dynamic"})
    small = quantize(model, config, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    folder = small.save(tmp_path / "folder", tiny_tokenizer())
    assert json.loads((folder / "hfcompress.json").read_text())["text"]["max_length"] == 9
    answer: Any = hfcompress.load(folder)("a good film")
    script = [sys.executable, str(folder / "example.py"), "a good film"]
    shown = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert shown.startswith(f"{answer['label']} {answer['score']:.4f}")
