"""Table and figure of a bench."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from hfcompress.report.bench import bench_figure, bench_table, draw_bench, environment_line


def row(engine: str, median: float, **changes: Any) -> dict[str, Any]:
    ratio = {"median": 12.0 / median, "low": 1.0, "high": 1.0}
    plain = {
        "model": "minilm", "engine": engine, "runtime": engine.split("-")[0], "batch": 1,
        "length": 32, "threads": 2, "median": median, "low": median - 1, "high": median + 2,
        "examples_per_second": 1000 / median, "bytes": 22_000_000, "speedup": ratio,
        "same_runtime": ratio,
    }  # fmt: skip
    return {**plain, **changes}


ROWS = [
    row("torch-fp32", 12.0, peak_rss=700_000_000),
    row("onnxruntime-int8", 3.0),
    row("torch-fp32", 120.0, batch=32),
    row("onnxruntime-int8", 30.0, batch=32),
]


def shown(rows: list[dict[str, Any]]) -> str:
    console = Console(width=160, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(bench_table(rows))
    return capture.get()


def test_the_table_has_sections_ratios_and_spread() -> None:
    text = shown(ROWS)
    lines = [line.split() for line in text.splitlines() if "-fp32" in line or "-int8" in line]
    assert lines[1][:4] == ["1x32", "2", "minilm", "onnxruntime-int8"]
    assert lines[1][4:10] == ["3.00", "2.00", "to", "5.00", "333.3", "4.00"]
    assert "700" in lines[0]
    assert "memory MB" in text
    assert "memory MB" not in shown(ROWS[1:])
    assert "1x32" not in shown([row("torch-fp32", 2.0, length=None)])


def test_the_environment_line_names_present_and_absent_instructions() -> None:
    around = {"cpu": "Some CPU", "cores": 2, "abilities": ["avx2", "avx512_vnni", "avx512_bf16"]}
    line = environment_line(around)
    assert line == "Some CPU, 2 cores: has avx512_vnni, avx512_bf16; no amx"
    assert "no instructions for int8 or bf16" in environment_line({**around, "abilities": ["avx2"]})


def test_the_figure_has_a_panel_per_point_and_a_bar_per_engine() -> None:
    figure = bench_figure(ROWS)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "1 x 32 tokens, 2 threads",
        "32 x 32 tokens, 2 threads",
    ]
    drawn: list[Any] = [axes.patches for axes in figure.axes]
    widths = [[bar.get_width() for bar in bars] for bars in drawn]
    assert widths == [[12.0, 3.0], [120.0, 30.0]]
    assert any("4.0 x" in text.get_text() for text in figure.axes[0].texts)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["torch-fp32", "onnxruntime-int8"]
    two = bench_figure([*ROWS[:2], row("torch-fp32", 6.0, model="small")])
    assert "small" in two.axes[0].get_yticklabels()[2].get_text()
    assert draw_bench(ROWS).startswith(b"\x89PNG")
    assert draw_bench([]).startswith(b"\x89PNG")
    image = bench_figure([row("torch-fp32", 2.0, length=None, threads=1)])
    assert image.axes[0].get_title(loc="left") == "1 image, 1 thread"
