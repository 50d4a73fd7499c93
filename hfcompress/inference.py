"""Call a classifier with a batch, and predict all rows: in fp32, or in bf16 with a check."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hfcompress.errors import ModelError
from hfcompress.measure.environment import bf16_is_faster

if TYPE_CHECKING:  # they import transformers and datasets
    from transformers import PreTrainedModel

    from hfcompress.data.encode import Batch, Encoded

Logits = NDArray[np.float32]
Batches: TypeAlias = "Iterable[tuple[NDArray[np.int64], Batch]]"


@torch.inference_mode()
def predict(
    model: nn.Module,
    data: Encoded,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
    batches: Batches | None = None,
) -> Logits:
    """The model's logits for every row, in the data's order.

    Args:
        model: put in eval mode; its device is used.
        data: rows to predict.
        batch_size: rows in a batch.
        progress: called with (rows done, rows in all) after each batch.
        batches: what ``data.batches`` gave, where the caller keeps it for several models.

    Returns:
        float32 [rows, classes].
    """
    model.eval()
    weight = next(model.parameters())

    def run(batch: Batch) -> Logits:
        inputs = {
            key: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
            for key, value in batch.items()
            if key != "labels"
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
    """As `predict`, by whatever gives one batch's logits.

    Args:
        run: one batch -> float32 [rows of the batch, classes].
        data, batch_size, progress, batches: as in `predict`.
    """
    logits: Logits | None = None
    done = 0
    for indices, batch in data.batches(batch_size) if batches is None else batches:
        part = run(batch)
        if logits is None:
            logits = np.empty((len(data), part.shape[1]), np.float32)
        logits[indices] = part
        done += len(indices)
        if progress is not None:
            progress(done, len(data))
    assert logits is not None
    return logits


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


# The largest error seen is multiplied by this before a row is trusted: errors are bell-shaped,
# so that three times the largest of some hundred is beyond anything that occurs.
SAFETY = 3.0
# Rows whose error is looked at before any is trusted.
SAMPLE = 64
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Prediction:
    """What a model says of every row.

    Attributes:
        logits: float32 [rows, classes]; those of rows that are far from a boundary have the
            precision of bf16.
        exact_rows: how many rows were computed in fp32.
    """

    logits: Logits
    exact_rows: int


def checking_pays(model: nn.Module, data: Encoded) -> bool:
    """True where `bf16_is_faster`, and for more than a few rows."""
    return bf16_is_faster(model) and len(data) > 2 * SAMPLE


def predict_checked(
    model: nn.Module,
    data: Encoded,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
    batches: Batches | None = None,
) -> Prediction:
    """Logits whose largest entry stands where fp32 puts it.

    All rows are predicted by a copy of the model in bf16. A sample of them, the ones nearest to a
    decision boundary among it, is predicted in fp32; the largest error seen there, times
    `SAFETY`, is what a row may be wrong by, and every row nearer to a boundary is computed in
    fp32 too.

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
    """How far the largest logit is above the second."""
    top = np.partition(logits, -2, axis=1)[:, -2:]
    margins: NDArray[np.float32] = top[:, 1] - top[:, 0]
    return margins


def _sample(margins: NDArray[np.float32]) -> Rows:
    """Half of the sample nearest to a boundary, half evenly from all other rows."""
    order = np.argsort(margins, kind="stable")
    nearest, others = order[: SAMPLE // 2], np.sort(order[SAMPLE // 2 :])
    spaced = np.linspace(0, len(others) - 1, min(SAMPLE // 2, len(others))).astype(np.int64)
    return np.sort(np.concatenate([nearest, others[spaced]]))


def _largest_error(rough: Logits, exact: Logits) -> float:
    """The most by which the difference of two logits of one row is wrong."""
    error = rough - exact
    return float((error.max(axis=1) - error.min(axis=1)).max())


def dense_logits(model: PreTrainedModel, batch: Mapping[str, Any]) -> Logits:
    """A torch model's logits for arrays or tensors, float32."""
    with torch.inference_mode():
        inputs = {key: torch.as_tensor(value) for key, value in batch.items()}
        found: Logits = np.asarray(model(**inputs).logits.float().cpu().numpy(), np.float32)
    return found
