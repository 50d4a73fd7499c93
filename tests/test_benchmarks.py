"""What all benchmarks share, and the parts of them that need no measuring."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from benchmarks._clock import CpuClock
from benchmarks._course import accuracy, fit, loader, lost, quick
from benchmarks._figures import Figure, kept_figures, report, spread
from benchmarks.course import ROWS, Unfolded
from benchmarks.course_phone import ROWS as PHONE_ROWS
from benchmarks.course_studies import STUDIES, bars, figures_of, row_of
from benchmarks.oneshot_quality import ONE_SHOT, OURS, SPARSITIES, without_the_easy
from benchmarks.tables import render
from hfcompress.recipes.library import find_recipe
from hfcompress.recipes.schema import expand, load_recipe
from tests.plain_networks import NETWORKS


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


def test_the_course_compares_models_on_the_same_images() -> None:
    dense, small = np.arange(100) < 90, np.arange(100) % 10 < 8
    figure = accuracy("x", small, ">= 50")
    assert (figure.value, figure.met) == (80.0, True)
    assert figure.low is not None
    assert figure.low < 80 < (figure.high or 0)
    figure = lost("x", dense, small, 5)
    assert (figure.value, figure.target, figure.met) == (10.0, "<= 5", False)
    assert figure.low is not None
    assert figure.low < 10 < (figure.high or 0)
    assert lost("x", dense, dense).value == 0


def test_training_channels_last_leaves_the_usual_order_and_holds_zeros() -> None:
    network = NETWORKS["course student"]
    model, data = network.model(), TensorDataset(*network.rows(128))
    with torch.no_grad():
        model.get_parameter("conv2.weight")[:5] = 0
    before = model.get_parameter("conv1.weight").clone()
    fit(model, loader(data), 1, holds_zeros=True)
    weight = model.get_parameter("conv2.weight")
    assert weight.is_contiguous()
    assert weight.dtype == torch.float32
    assert not weight[:5].any()
    assert not torch.equal(before, model.get_parameter("conv1.weight"))
    with quick(model):
        model(data.tensors[0])  # its view needs the usual order
    assert not model.get_submodule("pool")._forward_hooks


def test_a_convolution_by_patches_is_the_convolution() -> None:
    torch.manual_seed(0)
    conv, rows = torch.nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 8, 8)
    found = Unfolded(conv)(rows)
    torch.testing.assert_close(found, conv(rows))
    assert found.is_contiguous()  # for a view behind it


def test_studies_average_seeds() -> None:
    rows = [row_of("a", np.arange(10) < count, 0.5, seed) for seed, count in enumerate((8, 9))]
    (figure,) = figures_of("schedules", rows)
    assert (figure.name, figure.value, figure.low, figure.high) == ("schedules: a 50 %", 85, 80, 90)
    assert len(bars(["a"], [figure]).axes) == 1
    assert len({*ROWS, *PHONE_ROWS}) >= 9
    assert next(iter(STUDIES)) == "bits"
