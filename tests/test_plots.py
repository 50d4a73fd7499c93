"""Public pictures: from models or data to a figure that shows them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from hfcompress import plots
from hfcompress.benchmarking.feasibility import Feasibility, Verdict
from hfcompress.errors import BadInputError, HfcompressError
from hfcompress.pruning.familiar import prune_model_by_magnitude
from tests.plain_networks import NETWORKS


def texts(figure: Figure) -> str:
    figure.canvas.draw()
    return " ".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


def test_histograms_show_the_spike_of_zeros() -> None:
    dense, pruned = NETWORKS["course student"].model(), NETWORKS["course student"].model()
    prune_model_by_magnitude(pruned, 0.9)
    figure = plots.weight_histograms({"pruned to 90 %": pruned}, before=dense)
    assert "90.0 % are zero" in texts(figure)
    assert "pruned to 90 %" in texts(figure)
    assert len(plots.weight_histograms({"a": pruned, "b": dense}).axes) == 2
    assert len(plots.weight_histograms(torch.randn(50)).axes) == 1


def test_cells_and_levels_are_those_of_the_layers() -> None:
    model = NETWORKS["course student"].model()
    figure = plots.weight_cells({"dense": model}, ["conv1", "fc2"])
    assert "conv1" in texts(figure)
    assert "fc2" in texts(figure)
    assert "fc2" in texts(plots.integer_levels(model, ["fc2"]))


def test_temperatures_and_bits() -> None:
    figure = plots.softmax_temperatures(torch.tensor([[5.0, 1.0, 0.0]]), (1, 4), ["a", "b", "c"])
    heights = [bar.get_height() for bar in figure.axes[0].patches if isinstance(bar, Rectangle)]
    expected = [*torch.tensor([5.0, 1, 0]).softmax(0), *(torch.tensor([5.0, 1, 0]) / 4).softmax(0)]
    np.testing.assert_allclose(heights, [float(value) for value in expected], atol=1e-6)
    lines = {"per tensor": {8: 0.9, 2: 0.3}, "per channel": {8: 0.91, 4: 0.9, 2: 0.6}}
    figure = plots.bit_widths(lines, dense=0.92)
    drawn = {str(line.get_label()): line.get_ydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(np.asarray(drawn["per channel"]), [91, 90, 60])
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["8", "4", "2"]


def test_pictures_of_rows() -> None:
    rows = [
        {"method": "dense", "value": 0.9, "low": 0.88, "high": 0.92, "n": 500, "metric": "accuracy",
         "actual_sparsity": 0.0, "requested_sparsity": None, "bytes": 1000, "settings": {},
         "compression_ratio": 1.0, "steps": []},
        {"method": "magnitude", "value": 0.85, "low": 0.83, "high": 0.88, "n": 500,
         "metric": "accuracy", "actual_sparsity": 0.5, "requested_sparsity": 0.5, "bytes": 600,
         "settings": {}, "compression_ratio": 1.7, "steps": [{"step": "prune"}]},
    ]  # fmt: skip
    for draw in (plots.accuracy_curve, plots.accuracy_and_size, plots.pipeline_bars):
        assert isinstance(draw(rows), Figure)
    assert isinstance(plots.heatmap(["conv1"], [0.5, 0.9], [[0.8, 0.2]]), Figure)


def test_costs_are_drawn_by_bytes_and_by_milliseconds() -> None:
    common = {"metric": "accuracy", "settings": {}, "steps": [], "n": 100}
    rows = [
        {**common, "method": "dense", "value": 0.9, "bytes": 4e6, "latency": {"measured": 8.0}},
        {**common, "method": "2:4", "value": 0.88, "bytes": 2e6, "latency": {"measured": 7.0}},
        {**common, "method": "1:4", "value": 0.8, "bytes": 1e6},
        {**common, "method": "layers", "value": 0.85, "bytes": 3e6, "latency": {"measured": 5.0}},
        {**common, "method": "layers", "value": 0.7, "bytes": 2e6, "latency": {"measured": 3.0}},
        {**common, "method": "zeros", "value": 0.8, "bytes": 2e6, "latency": {"measured": 6.0}},
        {**common, "method": "zeros", "value": 0.6, "bytes": 1e6, "latency": {"measured": 6.5}},
    ]  # fmt: skip
    figure = plots.accuracy_size_and_latency(rows)
    left, right = figure.axes
    assert "MB" in left.get_xlabel()
    assert "milliseconds" in right.get_xlabel()
    drawn = {
        axes: [tuple(np.asarray(line.get_xdata(), float)) for line in axes.lines]
        for axes in (left, right)
    }
    assert {(2.0, 3.0), (1.0,), (4.0,)} <= set(drawn[left])
    assert {(3.0, 5.0), (7.0,), (8.0,)} <= set(drawn[right])
    assert (1.0,) not in drawn[right]
    assert (6.5, 6.0) in drawn[right], "in the order of the bytes, not of noisy times"
    shown = texts(figure)
    assert "layers" in shown
    assert "dense, 90.0" in shown


def test_a_heatmap_of_two_settings_leaves_open_what_is_missing() -> None:
    figure = plots.settings_heatmap(
        {0.5: {1: 0.9, 4: 0.92}, 1.0: {4: 0.91}}, "alpha", "temperature"
    )
    shown = texts(figure).split()
    assert {"90.0", "92.0", "91.0", "–", "alpha", "temperature", "0.5", "4"} <= set(shown)


def test_refuses_nothing_to_draw() -> None:
    with pytest.raises(BadInputError, match="there is no value to draw"):
        plots.settings_heatmap({}, "alpha", "temperature")
    with pytest.raises(BadInputError, match="there is no value to draw"):
        plots.bit_widths({})
    with pytest.raises(HfcompressError, match="lost"):
        plots.weight_cells(NETWORKS["mlp"].model(), ["lost"])


def test_the_feasibility_chart_takes_what_feasibility_returned() -> None:
    found = Feasibility(
        "net", "onnxruntime-int8", 70_000, 300_000, 0.1, 1000, None,
        (Verdict("phone", ()), Verdict("watch", ("0.3 MB in memory, 0.2 MB at most",))),
    )  # fmt: skip
    for given in (found, found.to_dict()):
        shown = " ".join(texts(plots.feasibility_chart([given])).split())
        assert "fits" in shown
        assert "0.2 MB at most" in shown
    with pytest.raises(BadInputError, match="there is no model to draw"):
        plots.feasibility_chart([])
