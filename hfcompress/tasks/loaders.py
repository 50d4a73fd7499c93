"""Any loader -> batches by the names that a module's ``forward`` has: the one adapter for data.

A loader is a ``DataLoader``, a ``TensorDataset`` or another dataset of torch, one batch, a list, or
a generator. A batch is a dict, a tensor or an array, a tuple whose first members are the inputs and
whose last one may be the labels, or a list of dicts, one for each row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from numbers import Number
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from hfcompress.errors import BadInputError, DataError
from hfcompress.inference import forward_names, input_names, takes_by_place
from hfcompress.utils import is_pretrained

Batch = dict[str, Tensor]
Loader: TypeAlias = (
    "DataLoader[Any] | Dataset[Any] | Mapping[str, object] | Tensor | Iterable[object]"
)
"""See the head of this file."""
LABEL_NAMES = ("labels", "label", "label_ids", "targets", "target", "y")
"""Names of labels, where ``forward`` has no input of the name."""
# Rows in a batch where the caller gives a dataset.
_ROWS = 32
_PLACE = "inputs."


def named_batches(
    data: object, model: nn.Module, error: type[BadInputError] = DataError
) -> Iterator[Batch]:
    """Yield the batches of any loader as dicts of tensors by the names of a model's inputs.

    Labels, if there are any, are in ``labels``. Nothing is read before the first batch is asked
    for, and a generator is read once.

    Args:
        data: see the head of this file.
        model: its ``forward`` names the members of tuples.
        error: the class of what is raised.

    Raises:
        DataError: no batch, a batch without rows, or something that is not a batch; or ``error``.
    """
    for batch in placed_batches(data, error):
        yield name_batch(batch, model, error)


def placed_batches(data: object, error: type[BadInputError] = DataError) -> Iterator[Batch]:
    """Yield the batches of any loader; members of tuples have their places as names.

    Raises:
        DataError: as `named_batches`.
    """
    count = 0
    for batch in _batches(data, error):
        found = _as_mapping(batch, error)
        if not found or any(not value.dim() or not len(value) for value in found.values()):
            raise error("a batch has no rows; give batches of examples")
        count += 1
        yield found
    if not count:
        raise error(
            "the loader has no batches: it is empty, or a generator that was read before; give a "
            "list or a DataLoader, which can be read again"
        )


def name_batch(batch: Batch, model: nn.Module, error: type[BadInputError] = DataError) -> Batch:
    """Return a batch with the names of the model's inputs in the place of places.

    Raises:
        DataError: fewer or more members than inputs, or unknown names; or ``error``.
    """
    placed = [value for name, value in batch.items() if name.startswith(_PLACE)]
    named = {name: value for name, value in batch.items() if not name.startswith(_PLACE)}
    if placed:
        names = input_names(model)
        if len(placed) > 1 and is_pretrained(model):
            raise error(
                f"{type(model).__name__} reads its inputs by name, and a batch is a tuple of "
                f"{len(placed)}; give dicts such as {{'input_ids': ..., 'labels': ...}}"
            )
        if len(placed) > len(names) and "labels" not in named:
            *placed, named["labels"] = placed
        if takes_by_place(model):
            names = tuple(f"{_PLACE}{place}" for place in range(len(placed)))
        elif len(placed) > len(names):
            names = (*names, *_optional(model))
        if len(placed) > len(names) or len(placed) < len(input_names(model)):
            raise error(
                f"a batch has {len(placed)} inputs and {type(model).__name__} takes "
                f"{', '.join(names)}; give as many, and labels as the last member"
            )
        named = dict(zip(names, placed, strict=False)) | named
    return _with_labels(named, model, error)


def has_places(batch: Mapping[str, object]) -> bool:
    """Return whether a batch of `placed_batches` has members that a model has yet to name."""
    return any(name.startswith(_PLACE) for name in batch)


def _with_labels(batch: Batch, model: nn.Module, error: type[BadInputError]) -> Batch:
    """Return the batch with its labels as ``labels``; other names must be the model's."""
    names, takes_any = forward_names(model)
    if "labels" not in batch:
        label = next((name for name in LABEL_NAMES if name in batch and name not in names), None)
        if label is not None:
            batch = {("labels" if name == label else name): v for name, v in batch.items()}
    inputs = [name for name in batch if name != "labels"]
    unknown = [name for name in inputs if name not in names]
    if unknown and len(inputs) > 1 and not takes_any and not _by_place(unknown):
        raise error(
            f"a batch has {', '.join(map(repr, inputs))}, and forward of {type(model).__name__} "
            f"takes {', '.join(sorted(names)) or 'no names'}; name the batch's tensors as forward "
            f"does"
        )
    return batch


def _by_place(names: Sequence[str]) -> bool:
    return all(name.startswith(_PLACE) for name in names)


def _optional(model: nn.Module) -> tuple[str, ...]:
    """The inputs of a model that have defaults."""
    needed = input_names(model)
    return tuple(name for name in input_names(model, optional=True) if name not in needed)


# --- what callers have -------------------------------------------------------------------------


def _batches(data: object, error: type[BadInputError]) -> Iterator[object]:
    if isinstance(data, (Mapping, Tensor, np.ndarray)):
        return iter([data])
    if isinstance(data, IterableDataset):
        return iter(DataLoader(data, batch_size=_ROWS))
    if isinstance(data, Dataset) or hasattr(data, "column_names"):
        return iter(DataLoader(_torch_rows(data), batch_size=_ROWS, collate_fn=_stack))
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes)):
        raise _no_batch(data, error)
    iterator = iter(data)
    first = next(iterator, None)
    if first is None:
        return iter(())
    whole = chain([first], iterator)
    return _grouped(whole) if _is_row(first) else whole


def _torch_rows(data: object) -> Dataset[object]:
    """A dataset whose members are tensors: one of the package ``datasets`` in its torch format."""
    with_format = getattr(data, "with_format", None)
    found: Dataset[object] = data if with_format is None else with_format("torch")  # type: ignore[assignment]
    return found


def _grouped(rows: Iterator[object]) -> Iterator[object]:
    part: list[object] = []
    for row in rows:
        part.append(row)
        if len(part) == _ROWS:
            yield part
            part = []
    if part:
        yield part


def _is_row(value: object) -> bool:
    """Whether a dict is one row: one of its values is a number, not a tensor of several."""
    return isinstance(value, Mapping) and any(map(_is_number, value.values()))


def _is_number(value: object) -> bool:
    return isinstance(value, Number) or (
        isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0
    )


def _as_mapping(batch: object, error: type[BadInputError]) -> Batch:
    if isinstance(batch, (list, tuple)) and batch and all(isinstance(b, Mapping) for b in batch):
        batch = _stack(batch, error)
    if isinstance(batch, Mapping):
        kept = {str(name): value for name, value in batch.items() if value is not None}
        return {name: _as_tensor(value, error) for name, value in kept.items()}
    if isinstance(batch, (Tensor, np.ndarray)):
        batch = (batch,)
    if not isinstance(batch, (list, tuple)):
        raise _no_batch(batch, error)
    found: Batch = {}
    for member in batch:
        if isinstance(member, Mapping):  # ({"x": ...}, labels)
            found |= _as_mapping(member, error)
        elif found and not has_places(found):
            found["labels"] = _as_tensor(member, error)
        elif isinstance(member, (list, tuple)) and all(map(_is_tensor, member)):
            for part in member:  # ((first, second), labels)
                found[f"{_PLACE}{len(found)}"] = _as_tensor(part, error)
        else:
            found[f"{_PLACE}{len(found)}"] = _as_tensor(member, error)
    return found


def _is_tensor(value: object) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _stack(rows: Sequence[object], error: type[BadInputError] = DataError) -> object:
    """Rows as one batch."""
    try:
        return default_collate(list(rows))
    except (TypeError, RuntimeError, KeyError) as problem:
        raise error(
            "rows of different sizes or names cannot be one batch; give a DataLoader whose "
            "collate_fn pads them"
        ) from problem


def _as_tensor(value: object, error: type[BadInputError]) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (list, tuple, np.ndarray)):
        array = np.asarray(value) if isinstance(value, np.ndarray) else _array(value, error)
        if array.dtype.kind in "biuf":
            return torch.from_numpy(np.ascontiguousarray(array))
    raise _no_batch(value, error)


def _array(value: object, error: type[BadInputError]) -> NDArray[np.generic]:
    try:
        return np.asarray(value)
    except ValueError:  # rows of different lengths
        raise _no_batch(value, error) from None


def _no_batch(value: object, error: type[BadInputError]) -> BadInputError:
    return error(
        f"batches must be dicts of tensors by the model's input names, tensors, or tuples of "
        f"them, not {type(value).__name__}; give batches such as {{'pixel_values': images}}"
    )
