"""What a model's outputs mean for distillation: its task and its logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from hfcompress.distillation.losses import Task
from hfcompress.errors import ModelError

_OF_PROBLEM: dict[str, Task] = {
    "single_label_classification": "classification",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}


def infer_task(model: nn.Module, label: Any = None) -> Task:
    """The task of a transformers model; classification for any other.

    Args:
        model: the student.
        label: the label of one row, where there is one: several numbers mean several labels.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    if name in MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values():
        return "spans"
    if name in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values():
        return "tokens"
    problem = getattr(config, "problem_type", None)
    if problem in _OF_PROBLEM:
        return _OF_PROBLEM[problem]
    if getattr(config, "num_labels", 2) == 1:
        return "regression"
    values = None if label is None else torch.as_tensor(label)
    if values is not None and values.is_floating_point() and values.dim():
        return "multi_label"
    return "classification"


def first_row(dataset: Any) -> Mapping[str, Any]:
    """The first row of a dataset; empty where there is none, or it is no mapping."""
    row = next(iter(dataset), None) if dataset is not None else None
    return row if isinstance(row, Mapping) else {}


def logits_of(outputs: Any) -> Tensor:
    """The logits in a model's outputs, as `Task` has them.

    Args:
        outputs: a tensor of logits, or an object or mapping with ``logits``, or with
            ``start_logits`` and ``end_logits`` for question answering.

    Raises:
        ModelError: there are none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    found = {name: _entry(outputs, name) for name in ("logits", "start_logits", "end_logits")}
    if found["logits"] is not None:
        return found["logits"]
    if found["start_logits"] is not None and found["end_logits"] is not None:
        return torch.stack([found["start_logits"], found["end_logits"]], dim=1)
    raise ModelError(
        f"outputs of type {type(outputs).__name__} hold no logits; return a tensor, or an object "
        "with 'logits', from the model"
    )


def _entry(outputs: Any, name: str) -> Tensor | None:
    if isinstance(outputs, Mapping):
        return outputs.get(name)
    found: Tensor | None = getattr(outputs, name, None)
    return found
