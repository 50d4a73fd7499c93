"""The model card of a compressed model: origin, measurements, recipe and environment."""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml

from hfcompress.report.page import flat_environment
from hfcompress.report.pipeline import speed_section
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
from hfcompress.utils import visible


def model_card(
    row: Row,
    *,
    name: str,
    dense: Row | None = None,
    base_model: str | None = None,
    task: str | None = None,
    dataset: str | None = None,
    license_name: str | None = None,
    language: str | None = None,
    recipe_text: str | None = None,
    environment: Mapping[str, object] | None = None,
) -> str:
    """The text of a ``README.md`` with metadata for the hub.

    Args:
        row: the row of the saved model.
        name: heading, the model's name.
        dense: the dense model's row, shown above it.
        base_model: hub name of the original model.
        task: pipeline task, such as ``text-classification``.
        dataset: hub name of the evaluation data.
        license_name: licence identifier, such as ``apache-2.0``.
        language: language code.
        recipe_text: the recipe as it was run.
        environment: names and values.
    """
    name = " ".join(visible(name).split())
    rows = [row] if dense is None else [dense, row]
    parts = [
        "---\n" + _header(row, name, base_model, task, dataset, license_name, language) + "---\n",
        f"# {markdown_text(name)}\n",
        _summary(row, base_model) + "\n",
        "## Measured\n",
        markdown_table(rows),
        _explanation(metric_of(rows)),
        *_timed(row),
        *_quantized(row),
    ]
    if recipe_text:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", recipe_text)), default=0))
        parts += ["## Recipe\n", f"{fence}yaml\n{recipe_text.rstrip()}\n{fence}\n"]
    if environment:
        flat = flat_environment(environment)
        lines = [f"- {markdown_text(key)}: {markdown_text(flat[key])}" for key in flat]
        parts += ["## Environment\n", "\n".join(lines) + "\n"]
    return "\n".join(parts)


def _header(
    row: Row,
    name: str,
    base_model: str | None,
    task: str | None,
    dataset: str | None,
    license_name: str | None,
    language: str | None,
) -> str:
    metric = metric_of([row])
    known: dict[str, object] = {
        "library_name": "transformers",
        "license": license_name,
        "language": language,
        "base_model": base_model,
        "pipeline_tag": task,
        "datasets": [dataset] if dataset else None,
        "metrics": _metric_names(row, metric),
        "tags": _tags(row),
        "model-index": _model_index(row, name, task, dataset) if task and dataset else None,
    }
    filled = {key: value for key, value in known.items() if value is not None}
    return yaml.safe_dump(filled, sort_keys=False, allow_unicode=True)


def _tags(row: Row) -> list[str]:
    tags = ["hfcompress"]
    if not is_dense(row) and number(row, "actual_sparsity"):
        tags.append("pruned")
    return [*tags, "quantized"] if quantize_step(row) else tags


def _timed(row: Row) -> list[str]:
    """The section on size and latency, if measured."""
    section = speed_section(row)
    return ["## Size and speed\n", section] if section else []


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


def _model_index(row: Row, name: str, task: str, dataset: str) -> list[dict[str, object]]:
    metric = metric_of([row])
    values = {metric: number(row, "value"), **(row.get("other_metrics") or {})}
    metrics = [{"type": key, "value": value} for key, value in values.items() if value is not None]
    result = {
        "task": {"type": task},
        "dataset": {"type": dataset, "name": dataset},
        "metrics": metrics,
    }
    return [{"name": name, "results": [result]}]


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
        f"The drop is the dense model's {markdown_text(metric)} minus this model's; McNemar's p "
        "tests whether they differ on the same examples. Zeros alone make a model neither smaller "
        "on disk nor faster in dense kernels.\n"
    )
