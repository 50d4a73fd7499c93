"""The model card of a compressed model: origin, measurements, recipe and environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hfcompress.report.page import flat_environment
from hfcompress.report.pipeline import size_sentence, speed_section
from hfcompress.report.rows import (
    Row,
    is_dense,
    method_of,
    metric_of,
    metric_text,
    number,
    quantize_step,
)
from hfcompress.report.table import markdown_table, markdown_text
from hfcompress.report.vectors import stored_table
from hfcompress.utils import visible

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


@dataclass(frozen=True)
class CardSource:
    """What a model was made from, as far as it is known.

    Attributes:
        base_model: hub name of the original model.
        task: pipeline task, such as ``text-classification``.
        dataset: hub name of the evaluation data.
        dataset_config: configuration of the data set.
        split: the rows that were measured.
        license_name: licence of the original model, such as ``apache-2.0``.
        language: language code.
        recipe_text: the recipe as it was run.
        environment: names and values.
    """

    base_model: str | None = None
    task: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    split: str | None = None
    license_name: str | None = None
    language: str | None = None
    recipe_text: str | None = None
    environment: Mapping[str, object] | None = None


def model_card(
    row: Row,
    *,
    name: str,
    source: CardSource | None = None,
    dense: Row | None = None,
    needs_hfcompress: bool = False,
) -> str:
    """Return the text of a ``README.md`` with metadata for the hub.

    Args:
        row: the row of the saved model.
        name: heading, the model's name.
        source: what it was made from.
        dense: the dense model's row, shown above it.
        needs_hfcompress: transformers loads it after ``import hfcompress`` only.
    """
    source = source or CardSource()
    name = " ".join(visible(name).split())
    rows = [row] if dense is None else [dense, row]
    return "\n".join([
        f"---\n{_header(row, name, source)}\n---\n",
        f"# {markdown_text(name)}\n",
        _summary(row, source.base_model) + "\n",
        *_loading(row, source.task, needs_hfcompress),
        "## Measured\n",
        markdown_table(rows),
        _explanation(metric_of(rows)),
        *_timed(row),
        *_stored(row),
        *_quantized(row),
        *_limits(row, source),
        *_origin(source),
    ])  # fmt: skip


def _header(row: Row, name: str, source: CardSource) -> str:
    """The metadata as YAML, in the form that the hub checks."""
    from huggingface_hub import ModelCardData

    results = _eval_results(row, source) if source.task and source.dataset else None
    data = ModelCardData(
        base_model=source.base_model,
        base_model_relation=_relation(row) if source.base_model else None,
        datasets=[source.dataset] if source.dataset else None,
        eval_results=results,
        language=source.language,
        library_name="hfcompress" if quantize_step(row) else "transformers",
        license=source.license_name,
        metrics=_metric_names(row, metric_of([row])),
        model_name=name if results else None,
        pipeline_tag=source.task,
        tags=_tags(row),
    )
    return str(data.to_yaml())


def _relation(row: Row) -> str:
    return "quantized" if quantize_step(row) else "finetune"


def _eval_results(row: Row, source: CardSource) -> list[EvalResult]:
    """One result for each metric; the name of the row's own says how sure it is."""
    from huggingface_hub import EvalResult

    metric, low, high = metric_of([row]), number(row, "low"), number(row, "high")
    values = {metric: number(row, "value"), **(row.get("other_metrics") or {})}
    interval = "" if low is None or high is None else f", 95 % interval {low:.4f} to {high:.4f}"
    count = f" ({row['n']} rows{interval})" if row.get("n") else ""
    return [
        EvalResult(
            task_type=str(source.task), dataset_type=str(source.dataset),
            dataset_name=str(source.dataset), dataset_config=source.dataset_config,
            dataset_split=source.split, metric_type=key, metric_value=value,
            metric_name=f"{key}{count}" if key == metric else key,
        )
        for key, value in values.items()
        if value is not None
    ]  # fmt: skip


# A folder on disk does not say its task: without one, pipeline() asks the hub.
_PIPELINE = ("transformers import pipeline", 'pipeline("TASK", model="FOLDER")')
_QUESTION = ('"Who wrote it?"', '"Ada Lovelace wrote it in 1843."')
_USES = {
    "text-classification": (*_PIPELINE, '("a sentence")'),
    "image-classification": (*_PIPELINE, '("photo.jpg")'),
    "image-segmentation": (*_PIPELINE, '("photo.jpg")'),
    "fill-mask": (*_PIPELINE, '(f"a {model.tokenizer.mask_token} film")'),
    "sentence-similarity": (
        "sentence_transformers import SentenceTransformer",
        'SentenceTransformer("FOLDER")',
        '.encode(["a sentence"])',
    ),
    "text-ranking": (
        "sentence_transformers import CrossEncoder",
        'CrossEncoder("FOLDER")',
        '.predict([("a query", "a passage")])',
    ),
    "question-answering": (  # transformers 5 has no such pipeline
        "transformers import AutoModelForQuestionAnswering, AutoTokenizer",
        'AutoModelForQuestionAnswering.from_pretrained("FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
        f'(**tokenizer({", ".join(_QUESTION)}, return_tensors="pt"))',
    ),
}
"""By task: what is imported, how it is loaded, and how an example is given."""
_QUANTIZED_USES = {"question-answering": "(question={}, context={})".format(*_QUESTION)}
"""How an example is given to a quantized folder, where that differs."""


def _loading(row: Row, task: str | None, needs_hfcompress: bool) -> list[str]:
    """The section on how to load the model."""
    task = task or "text-classification"
    library, made, call = _USES.get(task, _USES["text-classification"])
    lines = [f"from {library}\n", f"model = {made.replace('TASK', task)}"]
    if quantize_step(row):
        lines = ["import hfcompress\n", 'model = hfcompress.load("FOLDER")']
        call = _QUANTIZED_USES.get(task, call)
    elif needs_hfcompress:
        lines = ["import hfcompress  # so that transformers knows the shapes", *lines]
    code = "\n".join([*lines, f"print(model{call})"])
    return [
        "## How to load it\n",
        "FOLDER is this folder, or its name on the hub"
        + (" (pip install hfcompress).\n" if quantize_step(row) or needs_hfcompress else ".\n"),
        f"```python\n{code}\n```\n",
    ]


def _limits(row: Row, source: CardSource) -> list[str]:
    """The section on what the measurements do not say."""
    where = f" of {markdown_text(source.dataset)}" if source.dataset else ""
    lines = [
        f"- Measured on {row.get('n', 'some')} rows{where}; other inputs may lose more.",
        "- A metric that stays equal can hide single answers that changed"
        + (f": {100 * agreement:.1f} % agree with the dense model." if (
            agreement := number(row, "agreement")) is not None else "."),
        "- What the original model gets wrong or treats unfairly is not repaired here.",
    ]  # fmt: skip
    if quantize_step(row):
        lines.append("- Speed is that of the engine and the processor it was measured on.")
    return ["## Limits\n", "\n".join(lines) + "\n"]


def _origin(source: CardSource) -> list[str]:
    """The sections on the recipe and on the environment, where they are known."""
    parts = []
    if source.recipe_text:
        runs = re.findall("`+", source.recipe_text)
        fence = "`" * max(3, 1 + max(map(len, runs), default=0))
        text = source.recipe_text.rstrip()
        parts += ["## How it was made\n", f"{fence}yaml\n{text}\n{fence}\n"]
    if source.environment:
        flat = flat_environment(source.environment)
        lines = [f"- {markdown_text(key)}: {markdown_text(flat[key])}" for key in flat]
        parts += ["## Environment\n", "\n".join(lines) + "\n"]
    return parts


def _tags(row: Row) -> list[str]:
    tags = ["hfcompress"]
    if not is_dense(row) and number(row, "actual_sparsity"):
        tags.append("pruned")
    step = quantize_step(row)
    return [*tags, "quantized", str(step["backend"])] if step else tags


def _timed(row: Row) -> list[str]:
    """The section on size and latency, as far as they were measured."""
    if section := speed_section(row):
        return ["## Size and speed\n", section]
    size = size_sentence(row)
    return ["## Size\n", size] if size else []


def _stored(row: Row) -> list[str]:
    """The section on stored vectors, if measured."""
    table = stored_table([row])
    return ["## Stored vectors\n", table + "\n"] if table else []


def _quantized(row: Row) -> list[str]:
    """The section on what is quantized, what is not and why."""
    step = quantize_step(row)
    if not step:
        return []
    bytes_, macs = number(step, "share_of_bytes"), number(step, "share_of_macs")
    skipped = step.get("left_alone") or {}
    return [
        "## Quantized\n",
        f"Engine {step.get('backend')}, mode {step.get('mode')}: {100 * (bytes_ or 0):.1f} % of "
        f"the fp32 model's bytes are integers, and {100 * (macs or 0):.1f} % of its "
        "multiply-accumulates have integer weights. In floating point:\n",
        "\n".join(f"- {skipped[key]} modules: {markdown_text(key)}" for key in skipped) + "\n",
    ]


def _metric_names(row: Row, metric: str) -> list[str]:
    return [metric, *(other for other in row.get("other_metrics") or {} if other != metric)]


def _summary(row: Row, base_model: str | None) -> str:
    origin = markdown_text(base_model) if base_model else "a model"
    metric, sparsity = metric_of([row]), number(row, "actual_sparsity")
    if is_dense(row) or not sparsity:
        text = f"Made from {origin} with hfcompress."
    else:
        method = method_of(row, "pruning")
        text = (
            f"Made from {origin} with hfcompress: {100 * sparsity:.1f} % of the pruned layers' "
            f"weights are zero ({markdown_text(method)})."
        )
    value = number(row, "value")
    return text + (
        f" It reaches {metric_text(metric, value)} {markdown_text(metric)}." if value else ""
    )


def _explanation(metric: str) -> str:
    return (
        f"The drop is by how much {markdown_text(metric)} is worse than the dense model's; p "
        "tests whether they differ on the same examples. Zeros alone make a model neither smaller "
        "on disk nor faster in dense kernels.\n"
    )
