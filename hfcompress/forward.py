"""Calling any classifier with a batch: one of transformers, or a plain module of tensors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hfcompress.errors import ModelError


def call_model(model: nn.Module, batch: Mapping[str, Tensor]) -> Any:
    """What a model gives for a batch without its labels.

    Inputs go by name. A model that knows none of the names, such as an ``nn.Sequential``, is
    called with the batch's only tensor.

    Args:
        model: any module.
        batch: ``pixel_values``, or ``input_ids`` and ``attention_mask`` ...; ``labels`` are left
            out.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    parameters = inspect.signature(model.forward).parameters.values()
    named = {parameter.name for parameter in parameters}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    if len(inputs) == 1 and not takes_any and not named & inputs.keys():
        return model(*inputs.values())
    return model(**inputs)


def takes_labels(model: nn.Module) -> bool:
    """Whether a model computes a loss from the labels that it is given."""
    parameters = inspect.signature(model.forward).parameters
    return "labels" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def logits_in(outputs: Any) -> Tensor:
    """The logits [rows, classes] in what a classifier gives: a tensor, or an object with logits.

    Raises:
        ModelError: there are none.
    """
    found = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if isinstance(outputs, Mapping) and found is None:
        found = outputs.get("logits")
    if not isinstance(found, Tensor):
        raise ModelError(
            f"the model gives {type(outputs).__name__} without logits; it must return logits, or "
            f"an object that holds them"
        )
    return found
