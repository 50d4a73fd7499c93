"""Trials that fail are rows with a reason; the others go on."""

from __future__ import annotations

import csv
import html
from pathlib import Path
from typing import Any

import pytest

from hfcompress import inference as predict_module
from hfcompress.errors import (
    ModelError,
)
from hfcompress.recipes.schema import Recipe
from hfcompress.sweep import trial as trial_module
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.run import run
from hfcompress.utils import Progress


class Heard(Progress):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.counts: list[tuple[int, int]] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def sweep(self, done: int, total: int) -> None:
        self.counts.append((done, total))


def test_one_trial_that_fails_does_not_stop_the_others(
    table_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = predict_module.predict
    calls = []

    def sometimes(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return predict(*arguments, **named)

    monkeypatch.setattr(trial_module, "predict", sometimes)
    result = run(table_recipe, tmp_path / "run")
    assert [reason for _, reason in result.failures] == ["out of memory"]
    assert len(result.rows) == 2
    assert len(run(table_recipe, tmp_path / "run").rows) == 3


def breaks_second(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the second prediction of this process raise."""
    predict, calls = predict_module.predict, []

    def sometimes(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return predict(*arguments, **named)

    monkeypatch.setattr(trial_module, "predict", sometimes)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("oddity"), "ValueError: oddity"),
        (KeyError("oddity"), "KeyError: 'oddity'"),
        (MemoryError(), "MemoryError"),
        (RecursionError("=too deep"), "RecursionError: =too deep"),
        (SystemExit(3), "SystemExit: 3"),
        (ModelError("cannot be"), "cannot be"),
    ],
)
def test_a_failed_trial_is_a_row_with_its_reason(
    error: BaseException, reason: str, table_recipe: Recipe, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    breaks_second(monkeypatch, error)
    result = run(table_recipe, tmp_path / "run")
    assert result.failures == [({"prune.sparsity": 0.3}, reason)]
    assert [row["requested_sparsity"] for row in result] == [0, 0.9]
    (failed,) = RunDirectory(tmp_path / "run").failures()
    assert (failed["status"], failed["reason"], failed["index"]) == ("failed", reason, 1)
    assert "Traceback" in failed["trace"]
    with (tmp_path / "run" / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["status"] for row in rows] == ["", "failed", ""]
    assert rows[1]["reason"] == reason
    page = (tmp_path / "run" / "report.html").read_text()
    assert "1 of 3 trials failed" in page
    assert html.unescape(page).count(reason) == 1


def test_failed_trials_are_run_again_where_asked(
    table_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks_second(monkeypatch, ValueError("oddity"))
    run(table_recipe, tmp_path / "run")
    heard = Heard()
    again = run(table_recipe, tmp_path / "run", heard, retry_failed=False)
    assert again.failures == [({"prune.sparsity": 0.3}, "ValueError: oddity")]
    assert "1 trials failed in an earlier run and are not tried again" in heard.notes
    last = run(table_recipe, tmp_path / "run", retry_failed=True)
    assert [row["requested_sparsity"] for row in last] == [0, 0.3, 0.9]
    assert not last.failures
    assert "failed" not in (tmp_path / "run" / "results.csv").read_text()
    assert "trials failed" not in (tmp_path / "run" / "report.html").read_text()


def test_fail_fast_begins_no_trial_after_one_that_failed(
    table_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks_second(monkeypatch, ValueError("oddity"))
    result = run(table_recipe, tmp_path / "run", fail_fast=True)
    assert (len(result), len(result.failures)) == (1, 1)
    assert len(run(table_recipe, tmp_path / "run", retry_failed=False)) == 2


def test_an_interrupt_is_no_failure(
    table_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks_second(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(table_recipe, tmp_path / "run")
    assert len(RunDirectory(tmp_path / "run").rows()) == 1
    assert RunDirectory(tmp_path / "run").failures() == []
    assert len(run(table_recipe, tmp_path / "run")) == 3


def test_a_panic_of_a_library_in_rust_is_a_failure(
    table_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        """As pyo3 raises it: not an `Exception`."""

    breaks_second(monkeypatch, PanicException("index out of bounds"))
    result = run(table_recipe, tmp_path / "run", draw=False)
    assert [reason for _, reason in result.failures] == ["PanicException: index out of bounds"]
    assert len(result) == 2
