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
import yaml

from hfcompress.errors import OutputError
from hfcompress.report.card import model_card
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
    names = ["results.csv", "curve.png", "weights.png", "report.html"]
    assert [path.name for path in written] == names
    assert sorted(os.listdir(tmp_path / "new")) == sorted(names)
    assert (tmp_path / "new" / "curve.png").read_bytes().startswith(PNG)
    assert (tmp_path / "new" / "results.csv").read_text().count("\n") == 4


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS[1:2], [{"method": "x"}], [{}]])
def test_partial_rows_make_a_report(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    assert len(write_report(rows, tmp_path)) == 3
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
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "iframe"}
    assert "http" not in page
    assert "url(" not in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_shows_headline_table_recipe_and_environment() -> None:
    text = " ".join(
        Page(
            html_page(
                ROWS,
                title="My <title>",
                recipe_text="model: a <b>&c",
                environment={"cpu": "Xeon", "versions": {"torch": "2.13"}, "gpu": None},
            )
        ).text
    )
    assert "My <title>" in text
    assert "Sweet spot: 30.0 % sparsity" in text
    assert "model: a <b>&c" in text
    assert "versions.torch" in text
    assert "2.13" in text
    assert "gpu" not in text
    assert "87.5–91.5 %" in text


def test_the_sweet_spot_is_the_marked_row() -> None:
    page = html_page(ROWS)
    [marked] = re.findall(r'<tr class="marked">(.*?)</tr>', page, re.DOTALL)
    assert "30.0 %" in marked


def test_sections_without_content_are_left_out() -> None:
    page = html_page([])
    assert not any(f"<h2>{name}" in page for name in ("Measured", "Recipe", "Env", "Weights"))


def parts(card: str) -> tuple[dict[str, Any], str]:
    _, header, body = card.split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_card_has_the_header_that_the_hub_reads() -> None:
    header, _ = parts(
        model_card(
            ROWS[1],
            name="small: one",
            dense=ROWS[0],
            base_model="owner/base",
            task="text-classification",
            dataset="glue",
            license_name="apache-2.0",
            language="en",
        )
    )
    index = header.pop("model-index")
    assert header == {
        "library_name": "transformers",
        "license": "apache-2.0",
        "language": "en",
        "base_model": "owner/base",
        "pipeline_tag": "text-classification",
        "datasets": ["glue"],
        "metrics": ["accuracy", "f1"],
        "tags": ["hfcompress", "pruned"],
    }
    [result] = index[0]["results"]
    assert index[0]["name"] == "small: one"
    assert result["metrics"] == [
        {"type": "accuracy", "value": 0.895},
        {"type": "f1", "value": 0.77},
    ]
    assert result["task"] == {"type": "text-classification"}
    assert result["dataset"]["type"] == "glue"


def test_the_header_validates_as_card_data() -> None:
    from huggingface_hub import ModelCard

    card = ModelCard(
        model_card(ROWS[1], name="n", base_model="a/b", task="text-classification", dataset="glue")
    )
    data: dict[str, Any] = card.data.to_dict()  # type: ignore[no-untyped-call]
    assert data["base_model"] == "a/b"
    assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.895


def test_the_card_shows_measurements_recipe_and_environment() -> None:
    _, body = parts(
        model_card(
            ROWS[1],
            name="n",
            dense=ROWS[0],
            base_model="a/b",
            recipe_text="steps: []",
            environment={"torch": "2.13"},
        )
    )
    assert "30.0 % of the pruned layers' weights are zero (magnitude / layer)" in body
    assert "It reaches 89.5 % accuracy." in body
    assert "| dense | 0.0 % |" in body
    assert "```yaml\nsteps: []\n```" in body
    assert "- torch: 2.13" in body


def test_the_card_of_a_timed_model_shows_size_and_speed() -> None:
    timing = {
        "batch_size": 1, "length": 32, "repeats": 120, "threads": 2, "engine": "openvino",
        "fixed": True, "measured": {"median": 2.0}, "speedup": {"median": 8.25},
    }  # fmt: skip
    small = {**ROWS[1], "bytes": 9_000_000, "compression_ratio": 10.0, "timings": [timing]}
    _, body = parts(model_card(small, name="n"))
    assert "## Size and speed" in body
    assert "| 1 x 32 | 2 ms | 8.25 x |" in body
    assert "9.00 MB (10.00 x smaller) in openvino; examples x tokens, median of 120 rounds" in body
    assert "2 threads each; openvino compiled for that shape." in body
    assert "## Size and speed" not in model_card(ROWS[1], name="n")


def test_a_card_leaves_out_unknown_fields() -> None:
    header, body = parts(model_card(ROWS[0], name="n"))
    assert header["tags"] == ["hfcompress"]
    assert not {"base_model", "model-index", "license", "datasets"} & set(header)
    assert "Made from a model with hfcompress." in body
    assert "## Recipe" not in body
    assert "## Environment" not in body


def test_report_imports_no_torch() -> None:
    code = (
        "import sys, hfcompress.report.write, hfcompress.report.card, hfcompress.report.heatmap;"
        "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_card_of_a_quantized_model_shows_the_share_of_integers() -> None:
    step = {
        "step": "quantize", "backend": "openvino", "mode": "static", "share_of_bytes": 0.9986,
        "share_of_macs": 0.974, "left_alone": {"norms stay in floating point": 13},
    }  # fmt: skip
    header, body = parts(model_card({**ROWS[1], "steps": [step], "actual_sparsity": 0.0}, name="n"))
    assert header["tags"] == ["hfcompress", "quantized"]
    assert "Engine openvino, mode static: 99.9 % of the fp32 model's bytes are integers" in body
    assert "97.4 % of its multiply-accumulates" in body
    assert "- 13 modules: norms stay in floating point" in body
    both = parts(model_card({**ROWS[1], "steps": [step]}, name="n"))[0]
    assert both["tags"] == ["hfcompress", "pruned", "quantized"]


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


def test_a_card_shows_names_as_they_are_and_stays_one_file() -> None:
    name = "x\n---\n# y [a](b) <script>"
    card = model_card(ROWS[1], name=name, task="t", dataset="d", recipe_text="a: |\n  ```\n  x\n")
    header, body = parts(card)
    assert header["model-index"][0]["name"] == "x --- # y [a](b) <script>"
    assert body.lstrip().startswith(r"# x --- \# y \[a\](b) \<script\>")
    assert "````yaml\na: |\n  ```" in body
