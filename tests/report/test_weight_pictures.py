"""Grids, int8 levels and pipeline bars: the data kept for them and the figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hfcompress import PruningConfig, prune
from hfcompress.errors import BadInputError
from hfcompress.layers.affine import quantize_layer_weights
from hfcompress.measure.weights import SIDE, weight_grids
from hfcompress.quantization.weight_levels import weight_levels
from hfcompress.report.page import draw_pictures
from hfcompress.report.pipeline import bars_figure, draw_bars
from hfcompress.report.weights import (
    ZERO_COLOUR,
    draw_grids,
    draw_levels,
    grid_figure,
    grid_panels,
    level_figure,
    level_layers,
)
from tests.tiny_images import image_model

PNG = b"\x89PNG"


def test_grids_hold_the_weights_of_their_layers() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(
        nn.Conv2d(3, 40, 5),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.Linear(70, 60),
        Conv1D(9, 7),  # type: ignore[no-untyped-call]
    )
    wide, deep, matrix, turned = weight_grids(model, most=4)
    assert (wide["shape"], wide["tile"]) == ([40, 3, 5, 5], [5, 5])

    def value(grid: dict[str, Any]) -> Any:
        return np.asarray(grid["codes"]) * grid["scale"]

    def near(grid: dict[str, Any], found: Any, expected: torch.Tensor) -> None:
        np.testing.assert_allclose(found, expected.detach().numpy(), atol=1.01 * grid["scale"])

    assert value(wide).shape == (45, 15)
    near(wide, value(wide)[5 * 7 : 5 * 8, 5:10], model[0].weight[7, 1])
    assert value(deep).shape == (12, 12)
    near(deep, value(deep)[6:9, 3:6], model[1].weight[9, 0])
    assert value(matrix).shape == (SIDE, SIDE)
    near(matrix, value(matrix), model[2].weight[:SIDE, :SIDE])
    near(turned, value(turned), model[3].weight.t())


def test_only_exact_zeros_have_code_zero() -> None:
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 1e-6, 0.0]])
    (grid,) = weight_grids(nn.Sequential(layer))
    assert grid["codes"] == [[127, 1, 0]]


def test_grids_are_of_three_layers_or_of_the_named_ones() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(7)))
    assert [grid["name"] for grid in weight_grids(model)] == ["0", "3", "6"]
    assert [grid["name"] for grid in weight_grids(model, ["1", "5"])] == ["1", "5"]


def kept(sparsities: tuple[float, ...] = (0.0, 0.5, 0.9)) -> tuple[list[Any], dict[str, Any]]:
    rows, weights = [], {}
    for sparsity in sparsities:
        model = image_model("resnet")
        if sparsity:
            prune(model, PruningConfig(sparsity=sparsity))
        key = f"row {sparsity}"
        method = "magnitude" if sparsity else "dense"
        rows.append({"hash": key, "method": method, "actual_sparsity": sparsity})
        weights[key] = {
            "grids": weight_grids(model, ["resnet.encoder.stages.0.layers.0.layer.0.convolution"])
        }
    return rows, weights


def test_exact_zeros_have_their_own_colour() -> None:
    panels = grid_panels(*kept())
    assert [panel.title for panel in panels] == [
        "dense", "magnitude, 50 % zeros", "magnitude, 90 % zeros",
    ]  # fmt: skip
    figure = grid_figure(panels)
    shares = []
    for axes in figure.axes:
        values, zeros = (image.get_array() for image in axes.get_images())
        assert zeros is not None
        assert values is not None
        assert axes.get_images()[1].get_cmap()(0.5)[:3] == pytest.approx(
            [int(ZERO_COLOUR[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        )
        shares.append(float(1 - np.ma.getmaskarray(zeros).mean()))
        assert (np.ma.getmaskarray(zeros) != np.ma.getmaskarray(values)).all()
    assert shares[0] == 0
    assert 0.3 < shares[1] < shares[2]
    assert draw_grids(panels).startswith(PNG)


def test_no_grids_without_zeros_and_at_most_six() -> None:
    assert grid_panels(*kept((0.0,))) == []
    assert grid_panels([{"hash": "x", "actual_sparsity": 0.5}], {}) == []
    rows, weights = kept((0.0, 0.9))
    many = [{**rows[1], "actual_sparsity": place / 20} for place in range(20)]
    panels = grid_panels(many, weights)
    assert [panel.title for panel in panels][:1] == ["magnitude"]
    assert panels[-1].title == "magnitude, 95 % zeros"
    assert len(panels) == 6


def test_levels_count_the_quantized_values() -> None:
    model = image_model("resnet")
    name = "resnet.encoder.stages.1.layers.0.layer.1.convolution"
    (layer,) = weight_levels(model, [name])
    weight = model.get_submodule(name).get_parameter("weight").detach()
    integers = quantize_layer_weights(weight.flatten(1)).values
    assert layer["name"] == name
    assert layer["distinct_before"] == len(np.unique(weight.numpy()))
    assert layer["distinct_after"] == len(np.unique(integers.numpy())) <= 255
    expected = np.bincount(integers.numpy().astype(int).ravel() + 127, minlength=255)
    assert layer["zeros"] == 0
    assert layer["after"] == expected.tolist()
    assert sum(layer["before"]) == sum(layer["after"]) == layer["count"] == weight.numel()
    (coarse,) = weight_levels(model, [name], per_channel=False)
    assert coarse["after"] != layer["after"]
    assert [found["name"] for found in weight_levels(model, [name, "classifier.1"], most=1)] == [
        name
    ]


def test_levels_leave_out_pruned_zeros() -> None:
    model = image_model("resnet")
    prune(model, PruningConfig(sparsity=0.8))
    layers = weight_levels(model, [name for name, _ in model.named_modules()])
    for layer in layers:
        weight = model.get_submodule(layer["name"]).get_parameter("weight")
        assert layer["zeros"] == int((weight == 0).sum())
        assert sum(layer["before"]) == sum(layer["after"]) == int((weight != 0).sum())
    figure = level_figure(layers)
    said = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert any("80 % are zero, before and after" in text for text in said)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]  # type: ignore[union-attr]
    assert labels[1] == f"int8: {layers[0]['distinct_after']} levels"
    low, high = figure.axes[1].get_xlim()
    assert any(layers[0]["after"][round(low) + 127 : round(high) + 127])
    assert draw_levels(layers).startswith(PNG)
    quantized = {"hash": "b", "steps": [{"step": "quantize"}]}
    assert level_layers([{"hash": "a"}, quantized], {"b": {"levels": layers}}) == layers


def pipeline() -> list[dict[str, Any]]:
    common = {"metric": "accuracy"}
    return [
        {**common, "method": "dense", "value": 0.93, "low": 0.92, "high": 0.94, "bytes": 4e6,
         "steps": []},
        {**common, "method": "distill", "value": 0.92, "low": 0.91, "high": 0.93, "bytes": 4e5,
         "steps": [{}], "compression_ratio": 10.0},
        {**common, "method": "quantize", "value": 0.919, "bytes": 1e5, "steps": [{}, {}],
         "compression_ratio": 40.0},
    ]  # fmt: skip


def test_bars_show_metric_and_size_of_each_step() -> None:
    figure = bars_figure(pipeline())
    quality, size = figure.axes
    assert [bar.get_width() for bar in quality.patches] == pytest.approx([93, 92, 91.9])  # type: ignore[attr-defined]
    assert [bar.get_width() for bar in size.patches] == pytest.approx([4, 0.4, 0.1])  # type: ignore[attr-defined]
    assert [text.get_text() for text in quality.texts] == ["93.0 %", "92.0 %", "91.9 %"]
    assert [text.get_text().split("   ")[-1] for text in size.texts] == [
        "4 MB", "10.0 x smaller", "40.0 x smaller",
    ]  # fmt: skip
    assert "from" in quality.get_xlabel()
    assert [label.get_text() for label in quality.get_yticklabels()] == [
        "dense", "distill", "quantize",
    ]  # fmt: skip
    assert draw_bars(pipeline()).startswith(PNG)


def test_each_picture_is_drawn_if_rows_have_its_data() -> None:
    rows, weights = kept()
    assert list(draw_pictures([], {})) == ["curve"]
    assert list(draw_pictures(rows, weights)) == ["curve", "grids"]
    assert list(draw_pictures(pipeline(), {})) == ["bars"]


def test_refuses_to_draw_nothing_and_edges_that_do_not_match() -> None:
    for draw in (grid_figure, level_figure, bars_figure):
        with pytest.raises(BadInputError, match=r"give at least one|no row has"):
            draw([])
    layer = {"name": "x", "count": 1, "edges": [0, 1], "before": [1, 2], "after": [0] * 255,
             "zeros": 0, "distinct_before": 1, "distinct_after": 1}  # fmt: skip
    with pytest.raises(BadInputError, match="2 edges for 2 counts"):
        level_figure([layer])
