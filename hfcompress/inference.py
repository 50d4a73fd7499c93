"""Call a model with a batch, and predict all rows: in fp32, or in bf16 with a check."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from inspect import Parameter
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hfcompress.errors import ModelError
from hfcompress.measure.environment import bf16_is_faster
from hfcompress.utils import is_pretrained, unwrapped

if TYPE_CHECKING:  # it imports transformers and datasets
    from hfcompress.data.encode import Batch, Encoded

Logits = NDArray[np.float32]
Value = TypeVar("Value")
_LOGITS = ("logits", "start_logits", "end_logits")
Batches: TypeAlias = "Iterable[tuple[NDArray[np.int64], Batch]]"
LABELS = ("labels", "label", "label_ids", "start_positions", "end_positions")
"""Columns with labels, whatever the model calls them."""


@contextmanager
def placed(model: nn.Module, device: str | None) -> Iterator[None]:
    """Have a model on a device, and back where it was afterwards; None leaves it there."""
    home = next((parameter.device for parameter in model.parameters()), None)
    try:
        if device is not None and home is not None:
            model.to(device)
        yield
    finally:
        if device is not None and home is not None:
            model.to(home)


@torch.inference_mode()
def predict(
    model: nn.Module,
    data: Encoded,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
    batches: Batches | None = None,
) -> Logits:
    """Return the model's outputs for every row, in the data's order.

    Args:
        model: put in eval mode; its device is used.
        data: rows to predict.
        batch_size: rows in a batch.
        progress: called with (rows done, rows in all) after each batch.
        batches: the result of ``data.batches``, if the caller reuses it for several models.

    Returns:
        float32 [outputs, columns]: one output for each row, or those that the data count.
    """
    model.eval()
    weight = next(model.parameters())

    def run(batch: Batch) -> Logits:
        inputs = {
            key: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
            for key, value in batch.items()
            if key not in LABELS
        }
        found: Logits = logits_in(call_model(model, inputs)).float().cpu().numpy()
        return found

    return predict_with(run, data, batch_size, progress, batches)


def predict_with(
    run: Callable[[Batch], Logits],
    data: Encoded,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
    batches: Batches | None = None,
) -> Logits:
    """Return the outputs of every row, computed by a function of one batch.

    Args:
        run: one batch -> float32 [rows of the batch, ...].
        data, batch_size, progress, batches: as in `predict`.
    """
    logits: Logits | None = None
    done = 0
    for indices, batch in data.batches(batch_size) if batches is None else batches:
        part = run(batch)
        if data.counted is not None:
            part = data.counted(part, batch)
        if logits is None:
            logits = np.empty((int(data.starts[-1]), *part.shape[1:]), np.float32)
        logits[indices if data.counts is None else data.places(indices)] = part
        done += len(indices)
        if progress is not None:
            progress(done, len(data))
    assert logits is not None
    return logits


def input_names(model: nn.Module, optional: bool = False) -> tuple[str, ...]:
    """Return the names of the inputs that a model needs, in its order.

    A ``forward(*inputs)`` has the one name ``inputs``.

    Args:
        model: any module.
        optional: with the inputs that have a default.
    """
    if is_pretrained(model):
        return (model.main_input_name,)
    parameters = _parameters(unwrapped(model))
    named = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    needed = tuple(
        parameter.name
        for parameter in parameters
        if parameter.kind in named and (optional or parameter.default is Parameter.empty)
    )
    return needed or tuple(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)[:1]


def forward_names(model: nn.Module) -> tuple[frozenset[str], bool]:
    """Return the names that a model's ``forward`` takes, and whether it takes any other."""
    parameters = _parameters(unwrapped(model))
    names = frozenset(p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)


def takes_by_place(model: nn.Module) -> bool:
    """Return whether a model's ``forward`` takes any number of inputs, ``forward(*inputs)``."""
    return any(p.kind is p.VAR_POSITIONAL for p in _parameters(unwrapped(model)))


def _parameters(model: nn.Module) -> list[Parameter]:
    return list(inspect.signature(model.forward).parameters.values())


def call_model(model: nn.Module, batch: Mapping[str, Tensor]) -> object:
    """Return a model's output for a batch without its labels.

    Inputs are passed by name, or by place where ``forward`` takes them so. A model whose
    ``forward`` has none of the names, such as an ``nn.Sequential``, is called with the batch's
    only tensor.

    Args:
        model: any module.
        batch: ``pixel_values``, or ``input_ids`` and ``attention_mask`` ...; `LABELS` are
            ignored.
    """
    inputs = without_labels(batch)
    parameters = _parameters(model)
    named = {parameter.name for parameter in parameters}
    kinds = {parameter.kind for parameter in parameters}
    if Parameter.VAR_POSITIONAL in kinds and Parameter.VAR_KEYWORD not in kinds:
        return model(*inputs.values())
    if len(inputs) == 1 and Parameter.VAR_KEYWORD not in kinds and not named & inputs.keys():
        return model(*inputs.values())
    by_place = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.name in inputs]
    placed = [inputs.pop(name) for name in by_place]
    return model(*placed, **inputs)


def without_labels(batch: Mapping[str, Value]) -> dict[str, Value]:
    """Return a batch without its `LABELS`."""
    return {name: value for name, value in batch.items() if name not in LABELS}


def with_decoder_inputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch with what an encoder-decoder decodes from, made of its labels as it does.

    Unchanged where the batch says it, for other models, and where the labels are not tokens.
    """
    inner, labels = unwrapped(model), inputs.get("labels")
    shift: Callable[..., Tensor] | None
    shift = getattr(inner, "prepare_decoder_input_ids_from_labels", None)
    given = {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys()
    if shift is None or labels is None or labels.dim() != 2 or given:
        return dict(inputs)
    return {**inputs, "decoder_input_ids": shift(labels=labels)}


def takes_labels(model: nn.Module) -> bool:
    """Return whether a model takes labels and computes a loss."""
    parameters = inspect.signature(model.forward).parameters
    return bool({"labels", "start_positions"} & parameters.keys()) or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def logits_in(outputs: object) -> Tensor:
    """Return the logits in a model's outputs, in the shape that its task has.

    Args:
        outputs: a tensor of logits; an object or mapping with ``logits``, with ``start_logits`` and
            ``end_logits`` (spans), or, for a plain mapping or dataclass, with one tensor alone; or
            a tuple whose first tensor, behind a scalar loss, is the logits.

    Raises:
        ModelError: it has no logits.
    """
    if isinstance(outputs, Tensor):
        return outputs
    found = _entries(outputs)
    if "logits" in found:
        return found["logits"]
    if "start_logits" in found and "end_logits" in found:
        return torch.stack([found["start_logits"], found["end_logits"]], dim=1)
    tensors = {name: value for name, value in found.items() if value.dim()}
    if tensors and (isinstance(outputs, (tuple, list)) or len(tensors) == 1):
        return next(iter(tensors.values()))
    names = f" (its tensors are {', '.join(tensors)})" if tensors else ""
    raise ModelError(
        f"the model returns {type(outputs).__name__} without logits{names}; return logits, or "
        f"an object that has them"
    )


def _entries(outputs: object) -> dict[str, Tensor]:
    """Return the tensors of a model's outputs by name; of one of transformers its logits alone."""
    names: Mapping[str, object]
    if isinstance(outputs, (tuple, list)) and not hasattr(outputs, "logits"):
        names = {str(place): value for place, value in enumerate(outputs)}
    elif isinstance(outputs, Mapping):
        names = outputs
    elif is_dataclass(outputs):
        names = vars(outputs)
    else:
        names = {name: getattr(outputs, name, None) for name in _LOGITS}
    known = hasattr(outputs, "to_tuple")  # a ModelOutput, whose one tensor may be hidden states
    return {
        str(name): value
        for name, value in names.items()
        if isinstance(value, Tensor) and (name in _LOGITS or not known)
    }


# Factor on the largest error of the sample: errors are bell-shaped, so three times the largest of
# about a hundred is an upper bound.
SAFETY = 3.0
# Number of rows whose error is measured first.
SAMPLE = 64
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Prediction:
    """A classifier's logits for every row.

    Attributes:
        logits: float32 [rows, classes]; rows far from a decision boundary have bf16 precision.
        exact_rows: number of rows that were computed in fp32.
    """

    logits: Logits
    exact_rows: int


def checking_pays(model: nn.Module, data: Encoded) -> bool:
    """Return whether `bf16_is_faster` and there are more than a few rows."""
    return bf16_is_faster(model) and len(data) > 2 * SAMPLE


def predict_checked(
    model: nn.Module,
    data: Encoded,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
    batches: Batches | None = None,
) -> Prediction:
    """Return logits with the same largest entry as in fp32.

    A bf16 copy of the model predicts all rows. A sample, with the rows closest to a decision
    boundary in it, is predicted in fp32. The largest error of the sample times `SAFETY` bounds the
    error of a row, and every row closer to a boundary is computed in fp32, too.

    Args:
        model: a classifier of two or more classes; put in eval mode.
        data: rows to predict.
        batch_size: rows in a batch.
        progress: called with (rows done, rows in all) after each batch of the first pass.
        batches: as in `predict`.
    """
    half: nn.Module = copy.deepcopy(model).to(torch.bfloat16)
    logits = predict(half, data, batch_size, progress, batches)
    rough = logits.copy()
    margins = _margins(rough)
    done = np.zeros(len(data), bool)
    error, open_rows = 0.0, _sample(margins)
    while len(open_rows):
        logits[open_rows] = predict(model, data.select(open_rows), batch_size)
        done[open_rows] = True
        error = max(error, _largest_error(rough[open_rows], logits[open_rows]))
        open_rows = np.flatnonzero((margins <= SAFETY * error) & ~done)
    return Prediction(logits, int(done.sum()))


def _margins(logits: Logits) -> NDArray[np.float32]:
    """Return the difference of the largest and the second logit."""
    top = np.partition(logits, -2, axis=1)[:, -2:]
    margins: NDArray[np.float32] = top[:, 1] - top[:, 0]
    return margins


def _sample(margins: NDArray[np.float32]) -> Rows:
    """Return a sample: half of it closest to a boundary, half evenly spaced."""
    order = np.argsort(margins, kind="stable")
    nearest, others = order[: SAMPLE // 2], np.sort(order[SAMPLE // 2 :])
    spaced = np.linspace(0, len(others) - 1, min(SAMPLE // 2, len(others))).astype(np.int64)
    return np.sort(np.concatenate([nearest, others[spaced]]))


def _largest_error(rough: Logits, exact: Logits) -> float:
    """Return the largest error of the difference of two logits of one row."""
    error = rough - exact
    return float((error.max(axis=1) - error.min(axis=1)).max())


def dense_logits(model: nn.Module, batch: Mapping[str, Tensor | NDArray[np.generic]]) -> Logits:
    """Return a torch model's logits for arrays or tensors, float32."""
    with torch.inference_mode():
        inputs = {key: torch.as_tensor(value) for key, value in batch.items()}
        logits = logits_in(call_model(model, inputs))
    return np.asarray(logits.float().cpu().numpy(), np.float32)
