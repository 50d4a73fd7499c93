"""What all benchmarks share, and the parts of them that need no measuring."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks._clock import CpuClock
from benchmarks._figures import Figure, kept_figures, report, spread
from benchmarks.oneshot_quality import ONE_SHOT, OURS, SPARSITIES, without_the_easy
from benchmarks.tables import render
from hfcompress.recipes.library import find_recipe
from hfcompress.recipes.schema import expand, load_recipe


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [(20.0, ">= 20", True), (19.9, ">= 20", False), (1.2, "<= 1.2", True), (1.3, "<= 1.2", False),
     (-0.1, ">= -0.7", True), (5.0, None, None)],
)  # fmt: skip
def test_a_figure_is_met_when_its_value_satisfies_its_target(
    value: float, target: str | None, met: bool
) -> None:
    assert Figure("x", value, "s", target=target).met is met


def test_spread_gives_the_median_the_lowest_and_the_highest() -> None:
    figure = spread("x", [3.0, 1.0, 2.0, 10.0], "s", "<= 3")
    assert (figure.value, figure.low, figure.high, figure.met) == (2.5, 1.0, 10.0, True)


def test_report_writes_what_the_tables_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = [Figure("speed", 2.0, "x", 1.5, 2.5, ">= 3", "a note"), Figure("size", 7.0, "MB")]
    report(figures, "made_up", tmp_path / "made_up.json")
    assert "speed" in capsys.readouterr().out
    data = json.loads((tmp_path / "made_up.json").read_text())
    assert [figure["met"] for figure in data["figures"]] == [False, None]
    assert data["environment"]["packages"]["torch"]
    monkeypatch.setattr("benchmarks.tables.RESULTS", tmp_path)
    text = render("before\n<!-- results: made_up -->\nold\n<!-- end -->\nafter")
    assert "| speed | 2 x | 1.5 to 2.5 | >= 3, **not met** |" in text
    assert "| size | 7 MB |  |  |" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert render(text) == text


def test_kept_figures_are_computed_once_and_an_empty_list_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows" / "part.json"
    assert kept_figures(path, list) == []
    made = [Figure("speed", 2.0, "x", 1.5, 2.5, ">= 3", "a note")]
    assert kept_figures(path, lambda: iter(made)) == made
    assert kept_figures(path, lambda: pytest.fail("made twice")) == made


def test_the_cpu_clock_counts_work_but_not_waiting() -> None:
    clock = CpuClock()
    time.sleep(0.3)
    waited = clock.minutes
    assert waited < 0.1 / 60
    assert clock.wall >= 0.3 / 60
    until = time.thread_time() + 0.2
    while time.thread_time() < until:
        pass
    assert clock.minutes - waited >= 0.2 / 60


def test_the_one_shot_grid_has_three_seeds_where_the_target_allows_no_loss() -> None:
    chosen = without_the_easy(load_recipe(find_recipe("oneshot-methods")), seed=1)
    seeds: dict[tuple[str, float], set[int]] = {}
    for trial in expand(chosen):
        settings = trial.settings
        if "prune.seed" in settings and "prune.pattern" not in settings:
            key = settings["prune.method"], settings["prune.sparsity"]
            seeds.setdefault(key, set()).add(settings["prune.seed"])
    assert {sparsity for method, sparsity in seeds if method == OURS} == set(SPARSITIES)
    for (method, sparsity), found in seeds.items():
        every = method == OURS and ONE_SHOT[sparsity] == 0
        assert found == ({0, 1, 2} if every else {1})
