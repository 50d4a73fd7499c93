"""The run's folder survives crashes, strangers and read-only disks."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
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


def test_what_differs_from_what_was_written_is_refused_or_runs_again(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path)
    for name in "abc":
        store.append({"hash": name, "value": 0.25})
        store.append_failure({"hash": name, "reason": "no room"})
    store.append_weights({"a": {"counts": [3]}, "b": {"counts": [4]}})
    store.write_json("x.json", {"a": 1})
    whole = store.rows_file.read_text()
    for name, old, new in (
        ("failures.jsonl", "no room", "no roof"), ("weights.jsonl", "[3]", "[9]"),
        ("x.json", '"a": 1', '"a": 2'),
    ):  # fmt: skip
        path = tmp_path / name
        path.write_text(path.read_text().replace(old, new, 1))
    assert [row["hash"] for row in store.failures()] == ["b", "c"]
    assert set(store.weights()) == {"b"}
    assert store.notes == [
        f"{name}.jsonl, line 1, was cut short or damaged and is left out"
        for name in ("failures", "weights")
    ]
    with pytest.raises(OutputError, match=r"x\.json differs from what was written"):
        store.read_json("x.json")
    store.rows_file.write_text(whole.replace("0.25", "0.26", 1))
    with pytest.raises(OutputError, match="line 1, is not a result row as it was written"):
        RunDirectory(tmp_path).rows()
    store.rows_file.write_text(whole[:-40] + '0"}\n')
    again = RunDirectory(tmp_path)
    assert [row["hash"] for row in again.rows()] == ["a", "b"]
    assert "cut short or damaged" in again.notes[0]


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
    written = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert written.keys() == {"é", "digest"}
    assert not list(tmp_path.glob(".*tmp"))


def test_weights_are_appended_and_written_once(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path)
    (tmp_path / "weights.json").write_text('{"old": {"counts": [1]}}')
    store.append_weights({"old": {"counts": [2]}, "a": {"counts": [3]}})
    RunDirectory(tmp_path).append_weights({"a": {"counts": [4]}, "b": {"counts": [float("inf")]}})
    found = store.weights()
    assert found == {
        "old": {"counts": [1]}, "a": {"counts": [3]}, "b": {"counts": [float("inf")]}
    }  # fmt: skip
    assert len((tmp_path / "weights.jsonl").read_bytes().splitlines()) == 2
    with (tmp_path / "weights.jsonl").open("ab") as stream:
        stream.write(b'{"key": "c", "en')
    RunDirectory(tmp_path).append_weights({"d": {}})
    assert set(store.weights()) == {"old", "a", "b", "d"}


def test_appending_reads_one_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunDirectory(tmp_path)
    store.append({"hash": "a"})

    def never(*_: object) -> None:
        raise AssertionError("the whole file was read")

    monkeypatch.setattr(Path, "read_bytes", never)
    store.append({"hash": "b"})
    monkeypatch.undo()
    assert [row["hash"] for row in store.rows()] == ["a", "b"]


def test_rows_that_were_written_twice_are_read_once(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path)
    for value in (1, 2):
        for key in ("a", "b"):
            store.append({"hash": key, "value": value})
    assert store.rows() == [{"hash": "a", "value": 2}, {"hash": "b", "value": 2}]


def test_failures_are_kept_beside_the_rows(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path)
    assert store.failures() == store.keep_failures(()) == []
    for key in ("a", "b", "a"):
        store.append_failure({"hash": key, "status": "failed", "reason": "no room"})
    assert [row["hash"] for row in store.failures()] == ["a", "b"]
    assert store.rows() == []
    assert [row["hash"] for row in store.keep_failures({"b", "c"})] == ["b"]
    assert [row["hash"] for row in RunDirectory(tmp_path).failures()] == ["b"]
    store.keep_failures(())
    assert not (tmp_path / "failures.jsonl").exists()


HOLD = """
import sys
from pathlib import Path
from hfcompress.sweep.results import RunDirectory
with RunDirectory(Path(sys.argv[1])).locked(False, print):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_use_is_refused_by_name_or_waited_for(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path / "run")
    heard: list[str] = []
    with store.locked(False, heard.append), store.locked(False, heard.append):
        pass
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == b"held\n"
        host = re.escape(socket.gethostname())
        message = rf"in use by process {other.pid} on {host} since \d{{4}}-.*--wait"
        with pytest.raises(OutputError, match=message), store.locked(False, heard.append):
            pass
        threading.Timer(0.3, other.stdin.close).start()
        with store.locked(True, heard.append):
            assert heard[0].startswith(f"waiting for process {other.pid} on")


def test_a_dead_process_holds_no_folder(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        other.kill()
        other.wait()
    assert (tmp_path / ".lock.json").is_file()
    with RunDirectory(tmp_path).locked(False, print):
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock.json").exists()
