"""Model cards: the metadata that the hub checks, and what a reader is told."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from hfcompress.report.card import CardSource, model_card

ROW: dict[str, Any] = {
    "hash": "row-0.3", "method": "magnitude / layer", "requested_sparsity": 0.3,
    "actual_sparsity": 0.3, "metric": "accuracy", "value": 0.895, "low": 0.875, "high": 0.915,
    "n": 872, "drop": 0.005, "mcnemar_p": 0.5, "agreement": 0.97, "other_metrics": {"f1": 0.77},
}  # fmt: skip
DENSE = {**ROW, "hash": "row-0", "requested_sparsity": 0.0, "actual_sparsity": 0.0, "value": 0.9}
INT8 = {
    "step": "quantize", "backend": "openvino", "mode": "static", "share_of_bytes": 0.9986,
    "share_of_macs": 0.974, "left_alone": {"norms stay in floating point": 13},
}  # fmt: skip
SOURCE = CardSource(
    base_model="owner/base", task="text-classification", dataset="nyu-mll/glue",
    dataset_config="sst2", split="validation", license_name="apache-2.0", language="en",
    recipe_text="steps: []", environment={"torch": "2.13"},
)  # fmt: skip


def parts(card: str) -> tuple[dict[str, Any], str]:
    _, header, body = card.split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_header_is_what_the_hub_reads() -> None:
    text = model_card(ROW, name="small: one", dense=DENSE, source=SOURCE)
    header, _ = parts(text)
    index = header.pop("model-index")
    assert header == {
        "library_name": "transformers",
        "license": "apache-2.0",
        "language": "en",
        "base_model": "owner/base",
        "base_model_relation": "finetune",
        "pipeline_tag": "text-classification",
        "datasets": ["nyu-mll/glue"],
        "metrics": ["accuracy", "f1"],
        "tags": ["hfcompress", "pruned"],
    }
    name, results = model_index_to_eval_results(index)  # the hub's own reading
    assert name == "small: one"
    accuracy, f1 = results
    assert (accuracy.metric_type, accuracy.metric_value) == ("accuracy", 0.895)
    assert accuracy.metric_name == "accuracy (872 rows, 95 % interval 0.8750 to 0.9150)"
    assert (accuracy.dataset_type, accuracy.dataset_config) == ("nyu-mll/glue", "sst2")
    assert accuracy.dataset_split == "validation"
    assert (f1.metric_type, f1.metric_value, f1.metric_name) == ("f1", 0.77, "f1")
    data: dict[str, Any] = ModelCard(text).data.to_dict()  # type: ignore[no-untyped-call]
    assert data["model-index"] == index


def test_the_text_says_what_it_is_and_what_it_is_not() -> None:
    _, body = parts(model_card(ROW, name="n", dense=DENSE, source=SOURCE))
    assert "30.0 % of the pruned layers' weights are zero (magnitude / layer)" in body
    assert "It reaches 89.5 % accuracy." in body
    assert "| dense | 0.0 % |" in body
    assert "## How it was made\n\n```yaml\nsteps: []\n```" in body
    assert "- torch: 2.13" in body
    assert "Measured on 872 rows of nyu-mll/glue" in body
    assert "97.0 % agree with the dense model" in body


@pytest.mark.parametrize(
    ("steps", "needs", "lines"),
    [
        ([], False, ["from transformers import pipeline"]),
        ([], True, ["import hfcompress  # so that transformers knows the shapes",
                    "from transformers import pipeline"]),
        ([INT8], False, ["import hfcompress", 'model = hfcompress.load("FOLDER")']),
    ],
)  # fmt: skip
def test_the_card_says_how_each_form_is_loaded(
    steps: list[dict[str, Any]], needs: bool, lines: list[str]
) -> None:
    _, body = parts(model_card({**ROW, "steps": steps}, name="n", needs_hfcompress=needs))
    code = body.split("```python\n")[1].split("```")[0].splitlines()
    assert [line for line in code if line][: len(lines)] == lines


def test_the_card_of_a_timed_model_shows_size_and_speed() -> None:
    timing = {
        "batch_size": 1, "length": 32, "repeats": 120, "threads": 2, "engine": "openvino",
        "fixed": True, "measured": {"median": 2.0}, "speedup": {"median": 8.25},
    }  # fmt: skip
    small = {**ROW, "bytes": 9_000_000, "compression_ratio": 10.0, "timings": [timing]}
    _, body = parts(model_card(small, name="n"))
    assert "## Size and speed" in body
    assert "| 1 x 32 | 2 ms | 8.25 x |" in body
    assert "9.00 MB (10.00 x smaller) in openvino; examples x tokens, median of 120 rounds" in body
    assert "2 threads each; openvino compiled for that shape." in body
    assert "## Size and speed" not in model_card(ROW, name="n")


def test_a_card_leaves_out_unknown_fields() -> None:
    header, body = parts(model_card(DENSE, name="n"))
    assert header["tags"] == ["hfcompress"]
    assert not {"base_model", "model-index", "license", "datasets"} & set(header)
    assert "Made from a model with hfcompress." in body
    assert "## How it was made" not in body
    assert "## Environment" not in body


def test_the_card_of_a_quantized_model_shows_the_share_of_integers() -> None:
    step = {
        "step": "quantize", "backend": "openvino", "mode": "static", "share_of_bytes": 0.9986,
        "share_of_macs": 0.974, "left_alone": {"norms stay in floating point": 13},
    }  # fmt: skip
    header, body = parts(model_card({**ROW, "steps": [step], "actual_sparsity": 0.0}, name="n"))
    assert header["tags"] == ["hfcompress", "quantized", "openvino"]
    assert "Engine openvino, mode static: 99.9 % of the fp32 model's bytes are integers" in body
    assert "97.4 % of its multiply-accumulates" in body
    assert "- 13 modules: norms stay in floating point" in body
    both = parts(model_card({**ROW, "steps": [step]}, name="n"))[0]
    assert both["tags"] == ["hfcompress", "pruned", "quantized", "openvino"]


def test_a_card_shows_names_as_they_are_and_stays_one_file() -> None:
    name = "x\n---\n# y [a](b) <script>"
    card = model_card(
        ROW, name=name, source=CardSource(task="t", dataset="d", recipe_text="a: |\n  ```\n  x\n")
    )
    header, body = parts(card)
    assert header["model-index"][0]["name"] == "x --- # y [a](b) <script>"
    assert body.lstrip().startswith(r"# x --- \# y \[a\](b) \<script\>")
    assert "````yaml\na: |\n  ```" in body


@pytest.mark.parametrize(
    ("steps", "needs", "call"),
    [
        ([], False, "AutoModelForQuestionAnswering.from_pretrained"),
        ([], True, "import hfcompress  # so that"),
        ([INT8], False, 'model(question="Who wrote it?", context='),
    ],
)
def test_the_card_of_a_reader_asks_a_question(steps: list[Any], needs: bool, call: str) -> None:
    source = CardSource(task="question-answering")
    text = model_card({**ROW, "steps": steps}, name="m", source=source, needs_hfcompress=needs)
    header, body = parts(text)
    assert header["pipeline_tag"] == "question-answering"
    assert call in body
    assert '"a sentence"' not in body
    code = body.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
