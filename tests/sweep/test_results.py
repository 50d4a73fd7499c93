"""The run's folder survives crashes, strangers and read-only disks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hfcompress.errors import OutputError
from hfcompress.sweep.results import RunDirectory


def test_rows_come_back(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path / "run")
    assert not (tmp_path / "run").exists()  # nothing is made before there is something to keep
    store.append({"hash": "a", "value": 1.5})
    store.append({"hash": "b", "value": None})
    assert RunDirectory(tmp_path / "run").rows() == [
        {"hash": "a", "value": 1.5}, {"hash": "b", "value": None},
    ]  # fmt: skip


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_line_cut_by_a_crash_is_dropped_with_a_word(tmp_path: Path, cut: int) -> None:
    store = RunDirectory(tmp_path)
    for name in "abc":
        store.append({"hash": name})
    data = store.rows_file.read_bytes()
    store.rows_file.write_bytes(data[:-cut])
    again = RunDirectory(tmp_path)
    assert [row["hash"] for row in again.rows()] == ["a", "b"]
    assert "cut short" in again.notes[0]
    again.append({"hash": "c"})
    assert [row["hash"] for row in RunDirectory(tmp_path).rows()] == ["a", "b", "c"]


def test_a_line_in_the_middle_that_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"hash": "a"}\nhello\n{"hash": "b"}\n{"hash": "c"}\n')
    with pytest.raises(OutputError, match="line 2, is not a result row"):
        RunDirectory(tmp_path).rows()


def test_rows_of_another_recipe_are_refused(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path)
    store.append({"hash": "a"})
    assert store.claim({"a", "b"}) == [{"hash": "a"}]
    with pytest.raises(OutputError, match="contains results of another recipe"):
        store.claim({"b", "c"})


def test_a_file_or_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        RunDirectory(tmp_path / "file")
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    with pytest.raises(OutputError, match="read-only"):
        RunDirectory(locked / "run")
    locked.chmod(0o755)


def test_nan_never_reaches_the_file(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        store.append({"hash": "a", "value": float("nan")})
    assert store.rows() == []


def test_predictions_and_json_come_back(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path)
    logits = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    store.save_predictions("a", logits)
    loaded = store.load_predictions("a")
    assert loaded is not None
    np.testing.assert_array_equal(loaded, logits)
    assert store.load_predictions("b") is None
    store.write_json("x.json", {"é": 1})
    assert store.read_json("x.json") == {"é": 1}
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"é": 1}
    assert not list(tmp_path.glob(".*tmp"))
