"""Runs compared and drawn together, from what their folders keep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, spearmanr

from hfcompress import Recipe, compare_runs, run
from hfcompress.cli import main
from hfcompress.errors import BadInputError, ConfigError, OutputError
from hfcompress.sweep.comparison import report_runs
from hfcompress.sweep.results import RunDirectory
from tests.tasks.asked import asked_rows, save_reader
from tests.tasks.ranked import ranked_rows, reranker_folder
from tests.tasks.tagged import save_tagger, tagged_rows, write_rows


@pytest.fixture
def runs(table_recipe: Recipe, tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "a", tmp_path / "b"
    run(table_recipe, first, draw=False)
    other = table_recipe.to_dict()
    other["steps"], other["grid"] = [{"prune": {"scope": "global"}}], {"prune.sparsity": [0.2, 0.8]}
    other["name"] = "other"
    run(Recipe.from_dict(other, "other"), second, draw=False)
    return first, second


def row(name: str, value: float, index: int = 0, **fields: object) -> dict[str, object]:
    return {
        "hash": name, "index": index, "settings": {"k": name}, "method": "magnitude", "steps": [],
        "metric": "accuracy", "value": value, "low": value - 0.02, "high": value + 0.02,
        "requested_sparsity": 0.5, "actual_sparsity": 0.5, "bytes": 1000, **fields,
    }  # fmt: skip


def written(path: Path, *rows: dict[str, object]) -> Path:
    store = RunDirectory(path)
    for one in rows:
        store.append(one)
    return path


def answered(path: Path, right: dict[str, np.ndarray], rows: str = "rows") -> Path:
    """A folder whose models answer class 1 where they are right; every label is 1."""
    written(path, *(row(name, float(r.mean()), i) for i, (name, r) in enumerate(right.items())))
    store = RunDirectory(path)
    for name, one in right.items():
        store.save_predictions(name, np.eye(2, dtype=np.float32)[one.astype(int)])
    labels = np.ones(len(next(iter(right.values()))), np.int64)
    store.save_references(labels, rows, "text-classification")
    return path


def test_runs_on_the_same_rows_are_compared_pair_by_pair(tmp_path: Path) -> None:
    good, bad = np.arange(200) % 10 != 0, np.arange(200) % 10 < 8
    good[3] = False
    a, b = answered(tmp_path / "a", {"x": good}), answered(tmp_path / "b", {"y": bad})
    found = compare_runs(a, b)
    assert [one["run"] for one in found.rows] == ["a", "b"]
    assert [one["verdict"] for one in found.rows] == ["best", "worse"]
    won, lost = int((good & ~bad).sum()), int((bad & ~good).sum())
    comparison = found.rows[1]["comparison"]
    assert comparison["test"] == "McNemar"
    assert comparison["p"] == pytest.approx(binomtest(won, won + lost).pvalue)
    assert comparison["value"] == pytest.approx(good.mean() - bad.mean())
    assert "a:0 (magnitude, k=x) is better than b:0" in found.sentence
    assert "on the same 200 rows" in found.sentence
    elsewhere = answered(tmp_path / "c", {"y": bad}, rows="others")
    assert compare_runs(a, elsewhere).rows[1]["comparison"]["test"] == "intervals"


def test_rows_of_one_run_are_corrected_for_their_number(tmp_path: Path) -> None:
    base = np.arange(400) % 8 != 0
    worse = [base & (np.arange(400) % 53 != place) for place in (1, 2, 3)]
    folder = answered(tmp_path / "a", dict(zip("wxyz", [base, *worse], strict=True)))
    two = compare_runs(f"{folder}:0", f"{folder}:1").rows[1]["comparison"]["p"]
    every = compare_runs(folder)
    assert len(every.rows) == 4
    assert two < max(one["comparison"]["p"] for one in every.rows[1:])
    assert "has the best of 4 values" in every.sentence


def test_f1_is_compared_by_paired_bootstrap(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe(
        steps=[{"prune": {}}], grid={"prune.sparsity": [0, 0.9]}, measure={"metric": "f1"}
    )
    run(recipe, tmp_path / "run", draw=False)
    found = compare_runs(tmp_path / "run")
    comparison = found.rows[1]["comparison"]
    assert comparison["test"] == "paired bootstrap"
    assert comparison["value"] == pytest.approx(found.rows[0]["value"] - found.rows[1]["value"])


SOURCES: dict[str, tuple[Callable[..., Path], Callable[..., list[dict[str, Any]]], int]] = {
    "token-classification": (save_tagger, tagged_rows, 12),
    "question-answering": (save_reader, asked_rows, 12),
    "text-ranking": (reranker_folder, ranked_rows, 12),
}


@pytest.mark.parametrize("task", SOURCES)
def test_models_that_answer_in_parts_are_compared_over_their_own_units(
    task: str, tmp_path: Path
) -> None:
    save, rows, units = SOURCES[task]
    data = write_rows(tmp_path / "rows.jsonl", rows(12))
    made = {
        "model": str(save(tmp_path / "model")), "data": {"path": str(data), "eval_fraction": 0.5},
        "task": task, "measure": {"macs": False}, "steps": [{"prune": {}}],
    }  # fmt: skip
    for name, sparsity in (("a", 0.0), ("b", 0.9)):
        steps = [{"prune": {"sparsity": sparsity}}]
        run(Recipe.from_dict({**made, "steps": steps}, name), tmp_path / name, draw=False)
    found = compare_runs(tmp_path / "a", tmp_path / "b")
    comparison = found.rows[1]["comparison"]
    assert (comparison["test"], comparison["n"]) == ("paired bootstrap", units)
    assert comparison["value"] == pytest.approx(found.rows[0]["value"] - found.rows[1]["value"])
    # Each row was compared with its dense model, which is what the first run measured.
    pruned = next(one for one in found.rows if one["run"] == "b")
    sign = 1 if pruned["verdict"] != "best" else -1
    assert comparison["p"] == pytest.approx(pruned["paired_p"])
    assert sign * comparison["value"] == pytest.approx(pruned["drop"])


def test_pairs_are_compared_over_pairs_and_other_units_by_intervals(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    scores = generator.random(80)
    close, far = (scores + generator.normal(0, spread, 80) for spread in (0.1, 1.0))
    folders = []
    for name, cosines in (("a", close), ("b", far), ("c", far[:70])):
        value = float(spearmanr(cosines, scores[: len(cosines)]).statistic)
        folders.append(written(tmp_path / name, row(name, value, metric="spearman")))
        store = RunDirectory(tmp_path / name)
        units = np.stack([cosines, scores[: len(cosines)]], 1)
        store.save_predictions(name, {"logits": np.zeros((9, 2), np.float32), "units": units})
        store.save_references(object(), "rows", "sentence-similarity")
    found = compare_runs(folders[0], folders[1]).rows[1]["comparison"]
    assert (found["test"], found["n"]) == ("paired bootstrap", 80)
    draws = [generator.integers(0, 80, 80) for _ in range(400)]
    apart = [
        spearmanr(close[d], scores[d]).statistic - spearmanr(far[d], scores[d]).statistic
        for d in draws
    ]
    low, high = np.quantile(apart, [0.025, 0.975])
    assert found["low"] == pytest.approx(low, abs=0.06)
    assert found["high"] == pytest.approx(high, abs=0.06)
    assert compare_runs(folders[0], folders[2]).rows[1]["comparison"]["test"] == "intervals"


def test_without_intervals_nothing_is_claimed(tmp_path: Path) -> None:
    lone = [
        written(tmp_path / name, row(name, value, low=None, high=None))
        for name, value in (("a", 0.5), ("b", 0.6))
    ]
    found = compare_runs(*lone)
    assert [one["verdict"] for one in found.rows] == ["best", "unknown"]
    assert "cannot be said" in found.sentence


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a = written(tmp_path / "a", row("x", 0.5))
    b = written(tmp_path / "b", row("y", 0.5, metric="f1"))
    for given, error, words in (
        ((a, b), ConfigError, "a measures accuracy and b measures f1"),
        ((a,), ConfigError, "1 row to compare"),
        ((a, f"{a}:7"), OutputError, "has no row '7'; it has 0"),
        ((a, tmp_path / "c"), OutputError, "c contains no results"),
    ):
        with pytest.raises(error, match=words):
            compare_runs(*given)


def test_runs_are_drawn_and_compared_by_commands(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = map(str, runs)
    output = tmp_path / "both"
    assert main(["report", first, second, "--output", str(output)]) == 0
    assert "pareto.png" in capsys.readouterr().out
    page = (output / "report.html").read_text()
    assert compare_runs(first, second).sentence.split(":")[0] in page
    for name in ("run", "a: magnitude", "b: magnitude", '"front": true'):
        assert name in page
    lines = (output / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 + 2
    assert {"curve.png", "pareto.png", "report.md"} <= {path.name for path in output.iterdir()}
    assert not (output / "results.jsonl").exists()
    with pytest.raises(OutputError, match="holds a run of its own"):
        report_runs(runs, runs[0])
    with pytest.raises(BadInputError, match="given twice"):
        report_runs([first, first], output)
    assert main(["report", first, "--output", str(output)]) == 2
    capsys.readouterr()

    assert main(["compare", f"{first}:1", f"{second}:0"]) == 0
    shown = capsys.readouterr().out
    assert "verdict" in shown
    assert "on the same" in shown
    assert main(["compare", first, second, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["verdict"] == "best"
    assert main(["compare", first, f"{second}:9"]) == 2

    found = compare_runs(f"{first}:all", f"{second}:1")
    assert len(found.rows) == 4
    assert {one["comparison"]["test"] for one in found.rows[1:]} == {"McNemar"}
    labels = RunDirectory(runs[0]).references()
    assert labels is not None
    best = RunDirectory(runs[0] if found.rows[0]["run"] == "a" else runs[1])
    logits = best.load_predictions(found.rows[0]["hash"])
    assert logits is not None
    assert (logits.argmax(1) == labels.values).mean() == pytest.approx(found.rows[0]["value"])
