"""The page's chart: what it is given, and what a browser does with it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hfcompress.report.glossary import meanings
from hfcompress.report.page import Picture, html_page, markdown_page
from hfcompress.report.points import chart_of
from hfcompress.report.table import result_table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def row(method: str, sparsity: float, value: float, **fields: Any) -> dict[str, Any]:
    return {
        "hash": f"{method}{sparsity}", "method": method, "settings": {"prune.method": method},
        "requested_sparsity": sparsity, "actual_sparsity": sparsity, "metric": "accuracy",
        "value": value, "low": value - 0.02, "high": value + 0.02, "drop": 0.9 - value,
        "bytes": 4_000_000, "macs": 1e6, "agreement": 0.9, **fields,
    }  # fmt: skip


ROWS = [
    row("dense", 0.0, 0.9),
    row("magnitude", 0.5, 0.7, bytes=2_000_000),
    row("</script><b>$x_{$", 0.5, 0.8, latency={"measured": 2.5, "dense": 5.0}),
    row("magnitude", 0.3, 0.85),
]


def test_points_have_the_units_of_their_axes() -> None:
    chart = chart_of(ROWS)
    assert chart is not None
    assert [axis["key"] for axis in chart["axes"]] == ["sparsity", "bytes"]  # the others are equal
    second = chart["points"][1]
    assert (second["row"], second["group"], second["value"]) == (1, "magnitude", 70.0)
    assert (second["x"]["sparsity"], second["x"]["bytes"]) == (50.0, 2.0)
    assert second["low"] == pytest.approx(68.0)
    assert chart["points"][2]["x"]["milliseconds"] == 2.5
    assert chart["points"][1]["x"]["milliseconds"] is None
    assert list(chart["groups"]) == ["dense", "magnitude", "</script><b>$x_{$"]


@pytest.mark.parametrize("rows", [[], ROWS[:1], [ROWS[1], {**ROWS[1]}], [{}, {"method": "x"}]])
def test_rows_without_two_places_have_no_chart(rows: list[dict[str, Any]]) -> None:
    assert chart_of(rows) is None
    assert 'id="points"' not in html_page(rows)


def test_the_page_holds_the_points_of_its_table_and_asks_nobody() -> None:
    page = html_page(ROWS)
    found = re.search(r'<script type="application/json" id="points">(.*?)</script>', page)
    assert found is not None
    chart = json.loads(found[1])
    assert chart["points"] == json.loads(json.dumps(chart_of(ROWS)))["points"]
    assert list(chart["groups"]) == ["dense", "magnitude", "</script><b>$x_{$"]
    assert page.index('id="points"') < page.index("<table")  # the chart does not wait for rows
    assert page.count("data-row=") == len(result_table(ROWS).lines)
    assert "default-src 'none'" in page
    assert page.index("<main>") < page.index("<h1>") < page.index("</main>")  # a landmark
    assert "</script><b>" not in page
    assert re.findall(r"""(?:src|href)=["'](?!data:)""", page) == []


def test_a_picture_whose_caption_names_colours_keeps_them_in_the_dark() -> None:
    pictures = {"grids": Picture("w", "yellow is zero", b"", True), "bars": Picture("b", "c", b"")}
    page = html_page(ROWS, pictures=pictures, recipe_text="all", written_text="mine")
    assert re.findall(r'<img class="(.*?)"', page) == ["still", "wide own-colours"]
    assert page.index("mine") < page.index("<summary>With every default") < page.index(">all<")


def test_every_column_that_is_not_of_the_grid_has_a_meaning() -> None:
    titles = result_table(ROWS).titles
    assert set(meanings(titles, "accuracy")) == set(titles)
    assert "the metric" in html_page(ROWS)


def test_markdown_for_a_pull_request_shows_names_as_text() -> None:
    text = markdown_page(
        ROWS, title="A *title*", failures=[{"status": "failed"}], pictures=["curve"]
    )
    assert text.startswith("# A \\*title\\*\n")
    assert "1 of 5 trials failed" in text
    assert "![curve](curve.png)" in text
    assert "| magnitude |" in text.replace("**", "")
    assert "</script>" not in text.replace("\\<", "").replace("\\>", "")


_PROBE = """<script>addEventListener("DOMContentLoaded", () => {
const lines = () => [...document.querySelectorAll("table.rows tbody tr")];
const first = () => lines()[0].cells[0].textContent;
const heads = [...document.querySelectorAll("table.rows th button")];
const probe = () => {
  if (!document.querySelector(".chart canvas")) { setTimeout(probe, 50); return; }
  const found = {canvas: document.querySelectorAll(".chart canvas").length};
  const accuracy = heads.find((head) => head.textContent === "accuracy");
  accuracy.click(); found.highest = first(); accuracy.click(); found.lowest = first();
  const filter = document.querySelector("input[type=search]");
  filter.value = "dense"; filter.dispatchEvent(new Event("input"));
  found.left = lines().filter((line) => !line.hidden).length;
  lines()[0].click(); found.chosen = document.querySelectorAll("tr.chosen").length;
  const picker = document.querySelector("#axis");
  picker.value = "bytes"; picker.dispatchEvent(new Event("change"));
  found.canvas_after = document.querySelectorAll(".chart canvas").length;
  document.title = JSON.stringify(found);
};
probe();
});</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_draws_sorts_filters_and_links(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(html_page(ROWS).replace("</body>", _PROBE), encoding="utf-8")
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=30000", "--dump-dom",
         page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    assert json.loads(title[1]) == {
        "canvas": 1, "highest": "dense", "lowest": "magnitude", "left": 1, "chosen": 1,
        "canvas_after": 1,
    }  # fmt: skip
