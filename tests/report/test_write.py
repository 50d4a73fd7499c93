from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hfcompress.errors import OutputError
from hfcompress.report.page import Picture, html_page
from hfcompress.report.write import write_report


def row(sparsity: float, value: float, **fields: Any) -> dict[str, Any]:
    return {
        "hash": f"row-{sparsity}",
        "method": "magnitude / layer",
        "requested_sparsity": sparsity,
        "actual_sparsity": sparsity,
        "metric": "accuracy",
        "value": value,
        "low": value - 0.02,
        "high": value + 0.02,
        "drop": 0.9 - value,
        "mcnemar_p": 0.5,
        "other_metrics": {"f1": 0.77},
        **fields,
    }


ROWS = [row(0.0, 0.9), row(0.3, 0.895), row(0.5, 0.7)]
HISTOGRAM = {"edges": [0.0, 1.0], "counts": [5], "zeros": 5}
WEIGHTS = {"row-0.3": {**HISTOGRAM, "dense": "dense-0"}, "dense-0": HISTOGRAM}
PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Collects every tag with its attributes, the text, and checks that tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_every_file_is_written_and_named(tmp_path: Path) -> None:
    written = write_report(
        ROWS, tmp_path / "new", recipe_text="model: x", environment={"cpu": "y"}, weights=WEIGHTS
    )
    names = ["results.csv", "curve.png", "weights.png", "report.html", "report.md"]
    assert [path.name for path in written] == names
    assert sorted(os.listdir(tmp_path / "new")) == sorted(names)
    assert (tmp_path / "new" / "curve.png").read_bytes().startswith(PNG)
    assert (tmp_path / "new" / "results.csv").read_text().count("\n") == 4


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS[1:2], [{"method": "x"}], [{}]])
def test_partial_rows_make_a_report(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    assert len(write_report(rows, tmp_path)) == 4
    Page((tmp_path / "report.html").read_text())


def test_an_existing_histogram_is_kept_and_shown(tmp_path: Path) -> None:
    write_report(ROWS, tmp_path, weights=WEIGHTS)
    picture = (tmp_path / "weights.png").read_bytes()
    write_report(ROWS, tmp_path)
    assert (tmp_path / "weights.png").read_bytes() == picture
    assert base64.b64encode(picture).decode() in (tmp_path / "report.html").read_text()


def test_refuses_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="writable"):
        write_report(ROWS, tmp_path / "file")


def test_the_page_is_self_contained() -> None:
    pictures = {name: Picture(name, name, PNG + name.encode()) for name in ("curve", "weights")}
    page = html_page(ROWS, pictures=pictures)
    parsed = Page(page)
    images = [attributes["src"] or "" for tag, attributes in parsed.tags if tag == "img"]
    decoded = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in images]
    assert decoded == [PNG + b"curve", PNG + b"weights"]
    assert not {tag for tag, _ in parsed.tags} & {"link", "iframe"}
    named = [attributes.get(key) for _, attributes in parsed.tags for key in ("src", "href")]
    assert [name for name in named if name and not name.startswith("data:")] == []
    assert "default-src 'none'" in page  # whatever a script asks for, a browser refuses
    assert "prefers-color-scheme: dark" in page


def test_the_page_shows_headline_table_recipe_and_environment() -> None:
    text = " ".join(
        Page(
            html_page(
                ROWS,
                title="My <title>",
                recipe_text="model: a <b>&c",
                written_text="# why\nmodel: mine",
                environment={"cpu": "Xeon", "versions": {"torch": "2.13"}, "gpu": None},
            )
        ).text
    )
    assert "My <title>" in text
    assert "Sweet spot: 30.0 % sparsity" in text
    assert "model: a <b>&c" in text
    assert "As written: # why" in " ".join(text.split())
    assert "versions.torch" in text
    assert "2.13" in text
    assert "gpu" not in text
    assert "87.5–91.5 %" in text


def test_the_sweet_spot_is_the_marked_row() -> None:
    page = html_page(ROWS)
    [marked] = re.findall(r'<tr [^>]*class="marked">(.*?)</tr>', page, re.DOTALL)
    assert "30.0 %" in marked


def test_sections_without_content_are_left_out() -> None:
    page = html_page([])
    assert not any(f"<h2>{name}" in page for name in ("Measured", "Recipe", "Env", "Weights"))


def test_report_imports_no_torch() -> None:
    code = (
        "import sys, hfcompress.report.write, hfcompress.report.card, hfcompress.report.heatmap;"
        "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_failed_trials_stand_on_the_page_which_is_not_green(tmp_path: Path) -> None:
    broken = {"hash": "x", "settings": {"prune.sparsity": 0.7}, "status": "failed",
              "reason": "<b>=no room</b>"}  # fmt: skip
    write_report([*ROWS, broken], tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<p class="headline failed">1 of 4 trials failed; ' in page
    assert '<p class="headline plain">Sweet spot:' in page
    assert '<td class="text">prune.sparsity=0.7</td>' in page
    assert "&lt;b&gt;=no room&lt;/b&gt;" in page
    assert "<b>=no room</b>" in (tmp_path / "results.csv").read_text(encoding="utf-8")
    write_report([broken], tmp_path / "all")
    page = (tmp_path / "all" / "report.html").read_text(encoding="utf-8")
    assert "1 of 1 trials failed" in page
    write_report(ROWS, tmp_path / "none")
    page = (tmp_path / "none" / "report.html").read_text(encoding="utf-8")
    assert '<p class="headline">Sweet spot:' in page
    assert "failed" not in page.partition("<body>")[2]


def test_a_pipeline_leaves_no_curve_of_an_older_report(tmp_path: Path) -> None:
    write_report(ROWS, tmp_path)
    assert (tmp_path / "curve.png").is_file()
    steps = [
        {**one, "bytes": 1e6, "steps": [{"step": "prune"}] * place}
        for place, one in enumerate(ROWS)
    ]
    assert tmp_path / "bars.png" in write_report(steps, tmp_path)
    assert not (tmp_path / "curve.png").exists()
