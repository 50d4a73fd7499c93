from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from hfcompress.errors import BadInputError
from hfcompress.report.classes import class_figure
from hfcompress.report.curve import curve_figure, draw_curve
from hfcompress.report.heatmap import draw_heatmap, heatmap_figure
from hfcompress.report.pipeline import bars_figure
from hfcompress.report.plotting import png_bytes
from hfcompress.report.scatter import file_size_figure
from hfcompress.report.temperature import temperature_figure
from hfcompress.report.weights import (
    HistogramPanel,
    draw_histograms,
    histogram_figure,
    histogram_panels,
)


def row(method: str, sparsity: float, value: float, **fields: Any) -> dict[str, Any]:
    return {
        "method": method,
        "requested_sparsity": sparsity,
        "actual_sparsity": sparsity,
        "metric": "accuracy",
        "value": value,
        "low": value - 0.03,
        "high": value + 0.02,
        "drop": 0.9 - value,
        "mcnemar_p": 0.5,
        **fields,
    }


ROWS = [
    row("layer", 0.0, 0.90, reference=0.91),
    row("layer", 0.3, 0.89, reference=0.895),
    row("layer", 0.5, 0.80),
    row("global", 0.3, 0.895),
]


def legend(axes: Axes) -> list[str]:
    drawn = axes.get_legend()
    assert drawn is not None
    return [text.get_text() for text in drawn.get_texts()]


def lines(axes: Axes) -> dict[str, Any]:
    return {str(line.get_label()): line for line in axes.get_lines()}


def assert_nothing_is_clipped(figure: Figure) -> None:
    figure.canvas.draw()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= -0.01
    assert box.y0 >= -0.01
    assert box.x1 <= width + 0.01
    assert box.y1 <= height + 0.01


def test_the_curve_shows_methods_dense_published_and_sweet_spot() -> None:
    axes = curve_figure(ROWS, "a title").axes[0]
    assert legend(axes) == [
        "dense, 90.0 % (band: 95 % interval)",
        "layer",
        "global",
        "published",
        "sweet spot, 30 % with global",
    ]
    assert axes.get_title(loc="left") == "a title"
    published = lines(axes)["published"]
    assert published.get_xdata() == pytest.approx([0, 30])
    assert published.get_ydata() == pytest.approx([91, 89.5])
    assert "sparsity" in axes.get_xlabel()
    assert axes.get_ylabel() == "accuracy (%)"


def test_each_line_has_its_points_and_intervals() -> None:
    axes = curve_figure(ROWS).axes[0]
    layer = axes.containers[0]
    assert isinstance(layer, ErrorbarContainer)
    data, _, bars = layer.lines
    assert data.get_ydata() == pytest.approx([89, 80])
    assert np.abs(np.asarray(data.get_xdata(), dtype=float) - [30, 50]).max() <= 1
    [collection] = bars
    assert isinstance(collection, LineCollection)
    bottom, top = collection.get_segments()[0][:, 1]
    assert (bottom, top) == pytest.approx((86, 91))


def test_the_star_of_the_highest_point_is_inside_the_axes() -> None:
    rows = [row("layer", 0.0, 0.5), row("layer", 0.3, 0.9, high=0.99)]
    figure = curve_figure(rows)
    figure.canvas.draw()
    [axes] = figure.axes
    star = next(line for line in axes.get_lines() if line.get_marker() == "*")
    assert star.get_window_extent().y1 < axes.get_window_extent().y1


def test_seeds_are_averaged_and_drawn_as_dots() -> None:
    rows = [ROWS[0], *(row("layer", 0.3, value, seed=i) for i, value in enumerate((0.86, 0.88)))]
    axes = curve_figure(rows).axes[0]
    [bars] = axes.containers
    assert isinstance(bars, ErrorbarContainer)
    assert bars.lines[0].get_ydata() == pytest.approx([87])
    dots = [line for line in axes.get_lines() if line.get_marker() == "."]
    assert dots[0].get_ydata() == pytest.approx([86, 88])


def test_a_correlation_is_not_shown_in_percent() -> None:
    rows = [row("layer", s, v, metric="matthews_correlation") for s, v in ((0, 0.8), (0.5, 0.7))]
    axes = curve_figure(rows).axes[0]
    assert axes.get_ylabel() == "matthews correlation"
    [bars] = axes.containers
    assert isinstance(bars, ErrorbarContainer)
    assert bars.lines[0].get_ydata() == pytest.approx([0.7])


@pytest.mark.parametrize("count", [1, 9])
def test_no_label_is_clipped_for_one_and_for_nine_lines(count: int) -> None:
    rows = [ROWS[0], *(row(f"method number {i}", 0.3, 0.8 + i / 100) for i in range(count))]
    figure = curve_figure(rows, "title")
    assert len(legend(figure.axes[0])) >= count + 1
    assert_nothing_is_clipped(figure)


@pytest.mark.parametrize(
    "rows",
    [[], ROWS[:1], ROWS[1:2], [{"method": "x"}], [row("x", 0.3, 0.8, low=None, high=None)]],
)
def test_the_curve_of_partial_rows_is_drawn(rows: list[dict[str, Any]]) -> None:
    assert Image.open(io.BytesIO(draw_curve(rows))).size == (1280, 800)


def test_equal_rows_give_equal_bytes_and_rc_params_stay() -> None:
    before = dict(mpl.rcParams)
    assert draw_curve(ROWS) == draw_curve(ROWS)
    assert draw_curve(ROWS) != draw_curve(ROWS[:3])
    assert dict(mpl.rcParams) == before


def histogram(zeros: int) -> dict[str, Any]:
    return {"edges": [-1.0, 0.0, 1.0], "counts": [30, 10], "zeros": zeros, "count": 40 + zeros}


def test_histograms_show_shares_and_a_bar_of_zeros() -> None:
    panel = HistogramPanel("30 %", histogram(60), histogram(0))
    figure = histogram_figure([panel])
    [axes] = figure.axes
    before, after = (patch.get_data().values for patch in axes.patches)  # type: ignore[attr-defined]
    assert before == pytest.approx([75, 25])
    assert after == pytest.approx([30, 10])
    assert axes.get_title(loc="left") == "30 %"
    assert "60.0 % are zero" in axes.texts[0].get_text()
    assert_nothing_is_clipped(figure)


def test_histogram_panels_match_rows_with_kept_histograms() -> None:
    rows = [
        row("layer", 0.0, 0.9, hash="a"),
        row("layer", 0.5, 0.9, hash="b", seed=0),
        row("layer", 0.5, 0.9, hash="c", seed=1),
        row("layer", 0.3, 0.9, hash="d"),
        row("global", 0.3, 0.9, hash="e"),
        row("global", 0.5, 0.9, hash="not kept"),
    ]
    kept: dict[str, dict[str, Any]] = {key: {**histogram(1), "dense": "x"} for key in "abcd"}
    kept |= {"x": histogram(0), "e": histogram(2)}
    panels = histogram_panels(rows, kept)
    assert [panel.title for panel in panels] == ["layer, 30 %", "layer, 50 %", "global, 30 %"]
    assert panels[0] == HistogramPanel("layer, 30 %", kept["d"], kept["x"])
    assert panels[1].after is kept["b"]
    assert panels[2].before is None
    many = [row("m", i / 20, 0.9, hash="b") for i in range(1, 19)]
    assert len(histogram_panels(many, kept)) == 12


def test_eight_panels_are_drawn_four_in_a_row() -> None:
    panels = [HistogramPanel(f"method number one, {i} %", histogram(3)) for i in range(8)]
    figure = histogram_figure(panels)
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 4)  # type: ignore[union-attr]
    assert_nothing_is_clipped(figure)


def test_five_panels_are_drawn_three_in_a_row_without_before() -> None:
    figure = histogram_figure([HistogramPanel(str(i), histogram(0)) for i in range(5)])
    assert len(figure.axes) == 5
    assert legend(figure.axes[0]) == ["after"]
    assert not figure.axes[0].texts
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 3)  # type: ignore[union-attr]


def test_refuses_no_histograms_and_edges_that_do_not_match_counts() -> None:
    with pytest.raises(BadInputError, match="at least one"):
        draw_histograms([])
    with pytest.raises(BadInputError, match="one edge more"):
        draw_histograms([HistogramPanel("", {"edges": [0, 1], "counts": [1, 2], "zeros": 0})])


LAYERS = [f"bert.encoder.layer.{i}.output.dense" for i in range(3)]
VALUES: list[list[float | None]] = [[0.90, 0.80], [0.89, None], [0.91, 0.60]]


def test_the_heatmap_shows_drops_with_short_names() -> None:
    figure = heatmap_figure(LAYERS, [0.5, 0.9], VALUES, "accuracy", 0.9)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.0", "10.0", "1.0", "–", "−1.0", "30.0"]
    assert [t.get_text() for t in axes.get_yticklabels()] == [f"{i}.output.dense" for i in range(3)]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["50", "90"]
    assert "bert.encoder.layer" in axes.get_title(loc="left")
    assert figure.axes[1].get_ylabel() == "drop of accuracy (points)"
    assert_nothing_is_clipped(figure)


def test_without_a_dense_value_the_heatmap_shows_the_metric() -> None:
    values: list[list[float | None]] = [[0.5], [0.25], [0.125]]
    figure = heatmap_figure(LAYERS, [0.5], values, "matthews_correlation")
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.500", "0.250", "0.125"]
    [image] = [child for child in figure.axes[0].get_children() if isinstance(child, AxesImage)]
    assert image.get_cmap().name == "cividis"
    assert figure.axes[1].get_ylabel() == "matthews correlation"
    assert draw_heatmap(LAYERS, [0.5], values) != draw_heatmap(LAYERS, [0.6], values)


def test_a_single_layer_keeps_its_whole_name() -> None:
    axes = heatmap_figure(LAYERS[:1], [0.5, 0.9], VALUES[:1]).axes[0]
    assert axes.get_yticklabels()[0].get_text() == LAYERS[0]


def test_refuses_heatmap_values_of_a_different_shape() -> None:
    for values in (VALUES, [[0.5]] * 2, [[0.5], [], [0.5]], []):
        with pytest.raises(BadInputError, match="3 rows of 1 values"):
            draw_heatmap(LAYERS, [0.5], values)
    with pytest.raises(BadInputError, match="0 rows of 0 values"):
        draw_heatmap([], [], [])


def test_the_star_stands_at_our_point_not_at_the_published_one() -> None:
    rows = [row("layer", 0.0, 0.60, reference=0.97), row("layer", 0.3, 0.59, reference=0.96)]
    rows = [{**one, "drop": 0.60 - one["value"], "low": 0.55, "high": 0.65} for one in rows]
    figure = curve_figure(rows)
    figure.canvas.draw()
    [axes] = figure.axes
    star = next(line for line in axes.get_lines() if line.get_marker() == "*")
    place = np.column_stack([star.get_xdata(), star.get_ydata()])
    ((x, y),) = star.get_transform().transform(place)
    ours = axes.transData.transform((30, 65.0))
    assert abs(y - ours[1]) * 72 / figure.dpi < 20
    assert abs(x - ours[0]) * 72 / figure.dpi < 20


NAMES = ["$x_{$", "a$b$c", r"\frac", "[/x]", "^_^", "=1+1", "<b>", "|", "{0}", "%d"]


def test_names_are_drawn_as_they_are() -> None:
    rows = [row(name, 0.3, 0.8, settings={"name": name}) for name in NAMES]
    classes = [{"name": name, "n": 9, "dense": 0.9, "value": 0.5} for name in NAMES]
    figures = [
        curve_figure([{**one, "classes": classes} for one in rows], title="$x_{$"),
        class_figure({**rows[0], "classes": classes}),
        temperature_figure([[0.1] * len(NAMES)], labels=NAMES),
        heatmap_figure(["a.$x_{$", "a.b"], [0.5], [[0.1], [0.2]]),
        histogram_figure([HistogramPanel("$x_{$", histogram(1))]),
        bars_figure([{**one, "bytes": 1e6} for one in rows]),
        file_size_figure([{**one, "bytes": 1e6, "requested_sparsity": None} for one in rows]),
    ]
    for figure in figures:
        assert png_bytes(figure).startswith(b"\x89PNG")
