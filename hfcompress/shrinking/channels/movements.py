"""Labels of channels through operators that move, cut, join, pool or sum elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload

from hfcompress.shrinking.channels.labels import MarkedTensors, Marks, Vector

MOVES = frozenset({
    "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "transpose_", "t",
    "t_", "squeeze", "squeeze_", "unsqueeze", "unsqueeze_", "expand", "flip", "roll", "repeat",
    "unfold", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
})  # fmt: skip
"""Operators that can move an array of labels as they move the tensor itself."""


SplitPlace = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Split:
    """A view that spreads labelled channels over several dimensions; one of them is narrowed.

    Attributes:
        place: path of the module that makes it, and the sizes of the dimensions, longest first.
        labels: of the channels.
    """

    place: SplitPlace
    labels: Vector


@dataclass
class Splits:
    """The splits of a run.

    Attributes:
        choices: which dimension is narrowed at some places: 0, the default, is the longest.
        where: the path of the module that is running.
        found: so far.
    """

    choices: Mapping[SplitPlace, int]
    where: Callable[[], str]
    found: list[Split] = field(default_factory=list)

    def choice(self, labels: Vector, sizes: tuple[int, ...]) -> int:
        """Note a split, and return which of its dimensions is narrowed."""
        place = (self.where(), sizes)
        self.found.append(Split(place, labels))
        return self.choices.get(place, 0) % len(sizes)


class Arguments:
    """The arguments of one call of an operator, by name and with defaults."""

    def __init__(
        self, func: OpOverload, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> None:
        declared = func._schema.arguments
        self._values: dict[str, object] = {
            a.name: a.default_value if a.has_default_value() else None for a in declared
        }
        self._values.update(zip((a.name for a in declared), args, strict=False))
        self._values.update(kwargs)
        self.tensors = tensors_in(list(self._values.values()))

    def __getitem__(self, name: str) -> object:
        return self._values.get(name)

    def tensor(self, name: str) -> Tensor:
        """An argument that is a tensor."""
        value = self._values[name]
        assert isinstance(value, Tensor)
        return value

    def number(self, name: str, default: int = 0) -> int:
        """An argument that is an integer."""
        value = self._values.get(name)
        return value if isinstance(value, int) else default

    def numbers(self, name: str) -> list[int]:
        """An argument that is a list of integers, or one of them."""
        value = self._values.get(name)
        if isinstance(value, Sequence):
            return [int(item) for item in value]
        return [value] if isinstance(value, int) else []


def tensors_in(values: Sequence[object]) -> list[Tensor]:
    """All tensors in values and in lists of them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
    return found


def moved_marks(
    tensors: MarkedTensors,
    func: OpOverload,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    splits: Splits,
) -> list[Marks] | None:
    """The labels after a movement of a tensor: the movement of an array of its labels.

    Args:
        tensors: the labels so far.
        func, args, kwargs: the operator, before it runs.
        splits: added to.

    Returns:
        labels of each result; None where there are none.
    """
    tensor = args[0]
    if not isinstance(tensor, Tensor) or not tensors.of(tensor):
        return None
    found: list[Marks] = []
    for dim, vector in tensors.of(tensor).items():
        shape = [1] * tensor.dim()
        shape[dim] = len(vector)
        array = torch.from_numpy(vector).view(shape).expand(tensor.shape).contiguous()
        moved = tensors_in([func(array, *args[1:], **kwargs)])
        found = found or [{} for _ in moved]
        for marks, one in zip(found, moved, strict=True):
            _add(tensors, marks, one, splits)
    return found


def _add(tensors: MarkedTensors, marks: Marks, array: Tensor, splits: Splits) -> None:
    """Add an array of labels to a tensor's, tied so that they vary along one dimension."""
    labels = tensors.labels
    varying = [
        dim
        for dim, size in enumerate(array.shape)
        if size > 1 and not bool((array == array.narrow(dim, 0, 1)).all())
    ]
    if not varying:
        labels.freeze([array.flatten()[:1].numpy()])
        return
    varying.sort(key=lambda dim: -array.shape[dim])
    free = varying[0]
    if len(varying) > 1:
        sizes = tuple(array.shape[dim] for dim in varying)
        free = varying[splits.choice(np.unique(array.numpy()), sizes)]
    table = array.movedim(free, 0).reshape(array.shape[free], -1).numpy()
    labels.unite(table, table[:, :1])
    vector = table[:, 0].copy()
    if free in marks:
        labels.freeze([vector, marks[free]])
    marks[free] = vector


def reduce_marks(tensors: MarkedTensors, named: Arguments, outputs: list[Tensor]) -> None:
    """A sum, mean or other statistic over some dimensions, whose channels stay."""
    inputs = named.tensor("self")
    gone = {dim % max(inputs.dim(), 1) for dim in named.numbers("dim")}
    gone = gone or set(range(inputs.dim()))
    marks: Marks = {}
    for dim, vector in tensors.of(inputs).items():
        if dim in gone:
            tensors.labels.freeze([vector])
        else:
            removed = 0 if named["keepdim"] else sum(other < dim for other in gone)
            marks[dim - removed] = vector
    for output in outputs:
        tensors.set(output, dict(marks))


def spatial_marks(
    tensors: MarkedTensors, name: str, named: Arguments, outputs: list[Tensor]
) -> None:
    """Pooling, resizing and padding: channels along the last dimensions stay."""
    inputs = named.tensors[0]
    last = next((count for count in (1, 2, 3) if f"{count}d" in name), inputs.dim())
    first = inputs.dim() - last
    marks = tensors.of(inputs)
    tensors.labels.freeze(vector for dim, vector in marks.items() if dim >= first)
    for output in outputs:
        tensors.set(output, {dim: vector for dim, vector in marks.items() if dim < first})


def _along(tensors: MarkedTensors, named: Arguments, outputs: list[Tensor]) -> None:
    """Operators that mix all that lies along one dimension, such as softmax."""
    inputs = named.tensor("self")
    dim = named.number("dim", -1) % max(inputs.dim(), 1)
    marks = dict(tensors.of(inputs))
    tensors.labels.freeze([marks.pop(dim)] if dim in marks else [])
    for output in outputs:
        tensors.set(output, dict(marks))


def _pad(tensors: MarkedTensors, named: Arguments, outputs: list[Tensor]) -> None:
    inputs, pad = named.tensor("self"), named.numbers("pad")
    marks = dict(tensors.of(inputs))
    for number in range(len(pad) // 2):
        dim = inputs.dim() - 1 - number
        before, after = pad[2 * number : 2 * number + 2]
        if dim in marks and min(before, after) >= 0:
            marks[dim] = np.pad(marks[dim], (before, after))
        elif dim in marks:
            tensors.labels.freeze([marks.pop(dim)])
    tensors.set(outputs[0], marks)


def _join(tensors: MarkedTensors, named: Arguments, outputs: list[Tensor]) -> None:
    """``cat``: labels follow each other along its dimension and are united along others."""
    parts = [part for part in named.tensors if part.numel()]
    output = outputs[0]
    joined = named.number("dim") % output.dim()
    marks: Marks = {}
    for dim in range(output.dim()):
        found = [tensors.of(part).get(dim) for part in parts]
        if dim == joined and any(vector is not None for vector in found):
            marks[dim] = np.concatenate([
                np.zeros(part.shape[dim], np.int64) if vector is None else vector
                for part, vector in zip(parts, found, strict=True)
            ])  # fmt: skip
        elif dim != joined and (vector := tensors.labels.unite_all(found)) is not None:
            marks[dim] = vector
    tensors.set(output, marks)


def _stack(tensors: MarkedTensors, named: Arguments, outputs: list[Tensor]) -> None:
    parts = named.tensors
    new = named.number("dim") % outputs[0].dim()
    marks = tensors.united(parts, parts[0].shape)
    tensors.set(outputs[0], {dim + (dim >= new): vector for dim, vector in marks.items()})


def _split(tensors: MarkedTensors, named: Arguments, outputs: list[Tensor]) -> None:
    """Equal parts lose the same channels and stay equal; unequal ones lose none."""
    inputs = named.tensor("self")
    dim = named.number("dim") % inputs.dim()
    marks = tensors.of(inputs)
    sizes = [output.shape[dim] for output in outputs]
    if dim in marks and len(set(sizes)) == 1:
        tensors.labels.tie(marks[dim], len(sizes))
    elif dim in marks:
        tensors.labels.freeze([marks[dim]])
    start = 0
    for output, size in zip(outputs, sizes, strict=True):
        tensors.set(
            output, {d: v[start : start + size] if d == dim else v for d, v in marks.items()}
        )
        start += size


def _slice(tensors: MarkedTensors, named: Arguments, outputs: list[Tensor]) -> None:
    """As `_split`: a slice that can be one of equal parts is taken for one."""
    inputs = named.tensor("self")
    dim = named.number("dim") % inputs.dim()
    marks = dict(tensors.of(inputs))
    if dim in marks:
        vector, step = marks[dim], named.number("step", 1)
        end = named["end"] if isinstance(named["end"], int) else None
        chosen = range(len(vector))[named.number("start") : end : step]
        marks[dim] = vector[chosen.start : chosen.stop : step]
        even = len(chosen) > 0 and len(vector) % len(chosen) == 0
        if even and step == 1 and chosen.start % len(chosen) == 0:
            tensors.labels.tie(vector, len(vector) // len(chosen))
        elif even and step == len(vector) // len(chosen):
            columns = vector.reshape(len(chosen), step)
            tensors.labels.unite(columns, columns[:, :1])
        else:
            tensors.labels.freeze([vector])
    tensors.set(outputs[0], marks)


def _select(tensors: MarkedTensors, named: Arguments, outputs: list[Tensor]) -> None:
    inputs = named.tensor("self")
    dim = named.number("dim") % inputs.dim()
    marks = dict(tensors.of(inputs))
    tensors.labels.freeze([marks.pop(dim)] if dim in marks else [])
    for output in outputs:
        tensors.set(output, {d - (d > dim): vector for d, vector in marks.items()})


def _gate(tensors: MarkedTensors, named: Arguments, outputs: list[Tensor]) -> None:
    """``glu``: the first half times the sigmoid of the second."""
    inputs = named.tensor("self")
    dim = named.number("dim", -1) % inputs.dim()
    marks = dict(tensors.of(inputs))
    if dim in marks:
        tensors.labels.tie(marks[dim], 2)
        marks[dim] = marks[dim][: len(marks[dim]) // 2]
    tensors.set(outputs[0], marks)


Movement = Callable[[MarkedTensors, Arguments, list[Tensor]], None]
MOVEMENTS: dict[str, Movement] = {
    **dict.fromkeys(("_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp"), _along),
    **dict.fromkeys(("topk", "sort"), _along),
    "constant_pad_nd": _pad,
    "cat": _join,
    "stack": _stack,
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    **dict.fromkeys(("unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk"), _split),
    "slice": _slice,
    **dict.fromkeys(("select", "unbind"), _select),
    "glu": _gate,
}
