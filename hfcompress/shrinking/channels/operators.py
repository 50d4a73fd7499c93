"""Run a network and follow the labels of its channels through every ATen operator.

Movements (views, concatenation, slices, shuffles) move labels, element-wise operators unite those
of their operands, products unite the dimensions that they sum over. Where an operator is unknown,
or a constant meets a channel, the channel stays. The code of the network does not matter:
functional calls, bare parameters and shared weights are followed as modules are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from hfcompress.shrinking.channels.labels import Labels, MarkedTensors, Marks, Vector
from hfcompress.shrinking.channels.movements import (
    MOVEMENTS,
    MOVES,
    Arguments,
    Splits,
    moved_marks,
    reduce_marks,
    spatial_marks,
    tensors_in,
)
from hfcompress.shrinking.channels.sides import LAYERS, is_norm

Size = Vector | int
"""A dimension of a product: its labels, or its size where it has none."""

_ELEMENT_WISE = frozenset({
    "detach", "alias", "_to_copy", "lift_fresh", "native_dropout", "bernoulli", "bernoulli_",
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "fill_",
    "zero_", "normal_", "uniform_", "copy_", "copy", "hardswish", "hardswish_", "_prelu_kernel",
    "log_sigmoid_forward", "tril", "triu", "rsub", "masked_fill_",
})  # fmt: skip
"""Those that ATen does not tag as pointwise."""
_REDUCTIONS = frozenset({
    "sum", "mean", "amax", "amin", "max", "min", "var", "var_mean", "std", "std_mean", "norm",
    "linalg_vector_norm", "prod", "any", "all", "argmax", "argmin", "logsumexp", "median",
})  # fmt: skip
_SPATIAL = ("max_pool", "avg_pool", "upsample_", "reflection_pad", "replication_pad")
_CREATING = frozenset({"new_zeros", "new_empty", "new_ones", "new_full", "new_empty_strided"})


@dataclass(frozen=True)
class Product:
    """A matrix product or convolution: a coefficient times its dimensions."""

    coefficient: int
    sizes: tuple[Size, ...]


@dataclass
class Trail:
    """Labels and roles that one or several runs have shown.

    Attributes:
        labels: united so far.
        read, made: labels of the dimensions of weights that a product sums over, or makes.
        attended: labels of the operands of products of two activations.
        products: all, in order.
        uses: by the ``id`` of a tensor, how many operators have read it.
    """

    labels: Labels = field(default_factory=Labels)
    read: list[Vector] = field(default_factory=list)
    made: list[Vector] = field(default_factory=list)
    attended: list[Vector] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    uses: dict[int, int] = field(default_factory=dict)


class ChannelTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows labels through the operators that run inside.

    Args:
        trail: added to.
        marks: of the parameters and buffers, by ``id``; all of them have an entry.
        splits: where channels are spread over several dimensions; added to.
        on_norm: called with the labels of the channels that a norm works on.
    """

    def __init__(
        self,
        trail: Trail,
        marks: Mapping[int, Marks],
        splits: Splits,
        on_norm: Callable[[Vector], None],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trail = trail
        self.tensors = MarkedTensors(trail.labels, marks)
        self._splits = splits
        self._on_norm = on_norm

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Run an operator and label its results."""
        kwargs = kwargs or {}
        named = Arguments(func, args, kwargs)
        inputs, name = named.tensors, func.overloadpacket.__name__
        for tensor in inputs:
            self._trail.uses[id(tensor)] = self._trail.uses.get(id(tensor), 0) + 1
        moved = None
        if name in MOVES:
            moved = moved_marks(self.tensors, func, args, kwargs, self._splits)
        result = func(*args, **kwargs)
        outputs = tensors_in([result])
        if all(map(self.tensors.is_weight, inputs)):
            self.tensors.add_weights(outputs)
        if moved is not None:
            for output, marks in zip(outputs, moved, strict=True):
                self.tensors.set(output, marks)
        elif name in _PRODUCTS:
            _PRODUCTS[name](self._trail, self.tensors, named, outputs)
        elif any(map(self.tensors.of, inputs)):
            self._label(func, name, named, outputs)
        else:
            for output in outputs:
                self.tensors.set(output, {})
        return result

    def _label(self, func: OpOverload, name: str, named: Arguments, outputs: list[Tensor]) -> None:
        tensors = self.tensors
        if name in MOVEMENTS:
            MOVEMENTS[name](tensors, named, outputs)
        elif name in _NORMS:
            vector = _NORMS[name](tensors, named, outputs)
            if vector is not None:
                self._on_norm(vector)
        elif name in _ELEMENT_WISE or torch.Tag.pointwise in func.tags:
            for output in outputs:
                tensors.set(output, tensors.united(named.tensors, output.shape))
        elif name in _REDUCTIONS:
            reduce_marks(tensors, named, outputs)
        elif any(part in name for part in _SPATIAL):
            spatial_marks(tensors, name, named, outputs)
        elif name == "embedding":
            _look_up(self._trail, tensors, named, outputs)
        elif name not in _CREATING:
            tensors.freeze(named.tensors)


class CallRecord:
    """The calls of a model's modules in one forward pass.

    Args:
        model: not changed.

    Attributes:
        order: paths of all modules that were called, in order.
        positions: for each layer, how often its weight is applied for one row.
        normed: for each norm the labels of its channels.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._stack: list[str] = []
        self._made: dict[int, tuple[str, Tensor]] = {}  # a tensor that lives keeps its id
        self._read: dict[int, str] = {}
        self.order: dict[str, int] = {}
        self.positions: dict[str, float] = {}
        self.normed: dict[str, Vector] = {}

    def path(self) -> str:
        """The path of the module that is running."""
        return self._stack[-1] if self._stack else ""

    def note_norm(self, vector: Vector) -> None:
        """Note the labels that a norm works on, where a module makes it."""
        if is_norm(self._modules[self.path()]):
            self.normed[self.path()] = vector

    def followers(self, uses: Mapping[int, int]) -> dict[str, str]:
        """For each layer whose outputs a batch norm alone reads, the batch norm.

        Args:
            uses: how many operators have read each tensor.
        """
        return {
            name: self._read[tensor]
            for tensor, (name, _) in self._made.items()
            if tensor in self._read and uses.get(tensor) == 1
        }

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the calls inside."""
        handles = []
        for name, module in self._modules.items():
            handles.append(module.register_forward_pre_hook(partial(self._enter, name)))
            handles.append(module.register_forward_hook(partial(self._leave, name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module, args: tuple[object, ...]) -> None:
        self._stack.append(name)
        self.order.setdefault(name, len(self.order))
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) and args:
            self._read[id(args[0])] = name

    def _leave(self, name: str, module: nn.Module, args: object, output: object) -> None:
        self._stack.pop()
        if isinstance(module, LAYERS) and isinstance(output, Tensor):
            outputs = module.weight.shape[0]
            applied = output.numel() / outputs / len(output)
            self.positions[name] = self.positions.get(name, 0.0) + applied
            self._made[id(output)] = name, output


def _multiply(
    trail: Trail, tensors: MarkedTensors, named: Arguments, outputs: list[Tensor]
) -> None:
    """``mm`` and ``bmm``, and both with something that is added to them."""
    *added, left, right = named.tensors
    rows, columns = left.dim() - 2, right.dim() - 1
    read = (tensors.of(left).get(rows + 1), tensors.of(right).get(columns - 1))
    made = (tensors.of(left).get(rows), tensors.of(right).get(columns))
    trail.labels.unite_all(read)
    for tensor, summed, kept in zip((left, right), read, made, strict=True):
        if tensors.is_weight(tensor):
            trail.read += [] if summed is None else [summed]
            trail.made += [] if kept is None else [kept]
    _note_attended(trail, tensors, left, right)
    marks = {rows: made[0], columns: made[1]}
    for dim in range(rows):
        if left.shape[dim] > 1:
            both = [tensors.of(tensor).get(dim) for tensor in (left, right)]
            marks[dim] = trail.labels.unite_all(both)
    output = outputs[0]
    tensors.set(output, {dim: vector for dim, vector in marks.items() if vector is not None})
    if added:
        tensors.set(output, tensors.united([*added, output], output.shape))
    sizes = [_size(tensors, left, dim) for dim in range(left.dim())]
    trail.products.append(Product(1, (*sizes, _size(tensors, right, columns))))


def _convolve(
    trail: Trail, tensors: MarkedTensors, named: Arguments, outputs: list[Tensor]
) -> None:
    inputs, weight, output = named.tensor("input"), named.tensor("weight"), outputs[0]
    groups, transposed = named.number("groups"), bool(named["transposed"])
    trail.labels.freeze(v for dim, v in tensors.of(inputs).items() if dim != 1)
    trail.labels.freeze(v for dim, v in tensors.of(weight).items() if dim > 1)
    read, made = _convolved(tensors, inputs, weight, groups, transposed)
    if tensors.is_weight(weight):
        trail.read += [] if read is None else [read]
        trail.made += [] if made is None else [made]
    _note_attended(trail, tensors, inputs, weight)
    bias = named["bias"]
    vectors = [made]
    if isinstance(bias, Tensor) and len(bias) > 1:
        vectors.append(tensors.of(bias).get(0))
    made = trail.labels.unite_all(vectors)
    tensors.set(output, {} if made is None else {1: made})
    area = prod(weight.shape[2:]) * prod((inputs if transposed else output).shape[2:])
    sizes = (_size(tensors, weight, 0), _size(tensors, weight, 1))
    trail.products.append(Product(len(inputs) * area, sizes))


def _convolved(
    tensors: MarkedTensors, inputs: Tensor, weight: Tensor, groups: int, transposed: bool
) -> tuple[Vector | None, Vector | None]:
    """Unite a convolution's inputs with its weight.

    Returns:
        labels of the weight's dimension that is summed over, and of the outputs.
    """
    labels = tensors.labels
    incoming = tensors.of(inputs).get(1)
    first, second = tensors.of(weight).get(0), tensors.of(weight).get(1)
    if weight.shape[1] == 1 and groups > 1 and not transposed:  # an input for each output
        times = len(weight) // groups
        labels.unite_all([None if incoming is None else np.repeat(incoming, times), first])
        return None, first
    read, made = second, first
    wide = None if read is None else np.tile(read, groups)
    if transposed:
        read, made = first, None if second is None else np.tile(second, groups)
        wide = read
    if inputs.shape[1] > 1:
        labels.unite_all([incoming, wide])
    for vector in (incoming, made):
        if vector is not None:
            labels.tie(vector, groups)
    return read, made


def _note_attended(trail: Trail, tensors: MarkedTensors, first: Tensor, second: Tensor) -> None:
    if not (tensors.is_weight(first) or tensors.is_weight(second)):
        trail.attended += [*tensors.of(first).values(), *tensors.of(second).values()]


def _size(tensors: MarkedTensors, tensor: Tensor, dim: int) -> Size:
    vector = tensors.of(tensor).get(dim)
    return int(tensor.shape[dim]) if vector is None else vector


def _look_up(trail: Trail, tensors: MarkedTensors, named: Arguments, outputs: list[Tensor]) -> None:
    """``embedding``: its result has the columns of the table."""
    marks = tensors.of(named.tensor("weight"))
    trail.labels.freeze(vector for dim, vector in marks.items() if dim == 0)
    if 1 in marks:
        trail.made.append(marks[1])
        tensors.set(outputs[0], {outputs[0].dim() - 1: marks[1]})


def _batch_norm(tensors: MarkedTensors, named: Arguments, outputs: list[Tensor]) -> Vector | None:
    return _normed(tensors, 1, named, outputs)


def _layer_norm(tensors: MarkedTensors, named: Arguments, outputs: list[Tensor]) -> Vector | None:
    if len(named.numbers("normalized_shape")) > 1:
        tensors.freeze(named.tensors)
        return None
    return _normed(tensors, named.tensor("input").dim() - 1, named, outputs)


def _group_norm(tensors: MarkedTensors, named: Arguments, outputs: list[Tensor]) -> Vector | None:
    vector, groups = tensors.of(named.tensor("input")).get(1), named.number("group")
    if vector is not None and groups == len(vector):
        tensors.labels.freeze([vector])  # a group may not become empty
    elif vector is not None:
        tensors.labels.tie(vector, groups)
    return _normed(tensors, 1, named, outputs)


def _normed(
    tensors: MarkedTensors, dim: int, named: Arguments, outputs: list[Tensor]
) -> Vector | None:
    """Unite a norm's channels with its parameters and statistics, one number for each channel.

    Channels along other dimensions are mixed in its statistics, unless those are of each row.
    """
    inputs = named.tensor("input")
    if dim == 1 and dim < inputs.dim() - 1:
        tensors.labels.freeze(v for other, v in tensors.of(inputs).items() if other > dim)
    own = [t for t in named.tensors if t is not inputs and t.numel() == inputs.shape[dim] > 1]
    marks = tensors.of(inputs)
    vector = tensors.labels.unite_all([marks.get(dim), *(tensors.of(t).get(0) for t in own)])
    tensors.set(outputs[0], dict(marks))
    return vector


Follow = Callable[[Trail, MarkedTensors, Arguments, list[Tensor]], None]
_PRODUCTS: dict[str, Follow] = {
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _multiply),
    "convolution": _convolve,
}
_NORMS = {
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_fused_rms_norm": _layer_norm,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_batch_norm_with_update": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "miopen_batch_norm": _batch_norm,
}
