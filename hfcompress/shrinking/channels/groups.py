"""Groups of channels that only go together, made from the labels that a run has united."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from hfcompress.shrinking.channels.labels import Labels, Marks, Vector
from hfcompress.shrinking.channels.movements import Split, SplitPlace
from hfcompress.shrinking.channels.operators import CallRecord, Size, Trail
from hfcompress.shrinking.channels.sides import (
    Side,
    Slot,
    own_tensors,
    side_of,
    side_size,
    slots_of,
    tensors_by_name,
)


@dataclass(frozen=True)
class Place:
    """The channels of a group in one module.

    Attributes:
        module: its path; of a bare parameter (``side`` is ``"parameter"``) its own.
        side: the outputs or inputs of a layer, the features of a norm, a parameter's dimension.
        index: numbers of the outputs, inputs or features.
        unit: for each of them the number of the unit that it belongs to.
        dimension: of a bare parameter.
        read: of a bare parameter: whether a product sums over the dimension.
    """

    module: str
    side: Side
    index: Tensor
    unit: Tensor
    dimension: int = 0
    read: bool = False

    def slots(self, model: nn.Module) -> Iterator[tuple[Slot, Tensor]]:
        """The dimensions of parameters and buffers that hold the place, and the numbers there."""
        if self.side == "parameter":
            yield (self.module, self.dimension), self.index
            return
        module = model.get_submodule(self.module)
        own = {**module._parameters, **module._buffers}
        for name, dimension in slots_of(module, self.side):
            tensor = own[name]
            assert tensor is not None
            path = f"{self.module}.{name}" if self.module else name
            yield (path, dimension), self.index % tensor.shape[dimension]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that only go together in all modules that make, norm or read them.

    Attributes:
        name: path of the first layer that makes them.
        units: how many can go one by one; grouped convolutions lose one of each group at a time.
        places: where they are.
    """

    name: str
    units: int
    places: tuple[Place, ...]

    def of(self, side: Side) -> list[Place]:
        """The places on one side."""
        return [place for place in self.places if place.side == side]


@dataclass(frozen=True)
class Dimension:
    """A tensor's dimension.

    Attributes:
        size: as it is now.
        units: for each group that has a part of it, how many places each unit takes.
    """

    size: int
    units: dict[str, float]

    def without(self, names: Sequence[str]) -> Dimension:
        """The dimension where some groups keep all of their channels."""
        return Dimension(self.size, {n: each for n, each in self.units.items() if n not in names})


@dataclass(frozen=True)
class Term:
    """A coefficient times the product of some dimensions."""

    coefficient: float
    dimensions: tuple[Dimension, ...]


@dataclass(frozen=True)
class ChannelGraph:
    """The result of `trace`.

    Attributes:
        groups: in the order in which data pass their first layers.
        layers: paths of convolutions and Linears, in the order in which they are called.
        positions: for each layer, how often its weight is applied for one row (pixels, tokens).
        norms: layer -> the batch norm that alone reads it.
        work: the multiply-accumulates of one row.
        splits: for each group the views that could be narrowed in another way, and in how many.
    """

    groups: tuple[ChannelGroup, ...]
    layers: tuple[str, ...]
    positions: dict[str, float]
    norms: dict[str, str]
    work: tuple[Term, ...]
    splits: dict[str, dict[SplitPlace, int]]

    def without(self, names: Sequence[str]) -> ChannelGraph:
        """The graph without some groups, which keep all of their channels."""
        work = tuple(
            replace(term, dimensions=tuple(part.without(names) for part in term.dimensions))
            for term in self.work
        )
        groups = tuple(group for group in self.groups if group.name not in names)
        return replace(self, groups=groups, work=work)


@dataclass(frozen=True)
class _Numbering:
    """For each label its group and its unit there; group -1 is none.

    Attributes:
        labels: of the trail.
        group, unit: by label.
        units: of each group.
    """

    labels: Labels
    group: Vector
    unit: Vector
    units: list[int]

    def of(self, vector: Vector) -> Iterator[tuple[int, Vector, Vector]]:
        """The groups in a vector, with the places of each there and their units."""
        roots = self.labels.roots(vector)
        groups = self.group[roots]
        for number in np.unique(groups[groups >= 0]):
            places = np.flatnonzero(groups == number)
            yield int(number), places, self.unit[roots[places]]


def find_groups(
    model: nn.Module,
    marks: Mapping[str, Marks],
    trail: Trail,
    record: CallRecord,
    splits: Sequence[Split],
) -> ChannelGraph:
    """The groups of a model whose channels have been followed.

    Args:
        model: not changed.
        marks: labels of its parameters and buffers, by name.
        trail: what was united.
        record: of the pass in eval mode.
        splits: views that split channels.
    """
    _freeze_attention(marks, trail)
    numbering, firsts = _numbered(marks, trail)
    places: list[list[Place]] = [[] for _ in numbering.units]
    read = _flags(trail.read, numbering.labels)
    for number, place in _places(model, marks, numbering, read, record):
        places[number].append(place)
    names = [_group_name(model, name) for name in firsts]
    groups = [
        ChannelGroup(name, units, tuple(own))
        for name, units, own in zip(names, numbering.units, places, strict=True)
    ]
    order = record.order
    alike = [group for group in groups if _is_read_alike(group)]
    return ChannelGraph(
        tuple(
            sorted(alike, key=lambda g: order.get(g.name, order.get(g.name.rpartition(".")[0], 0)))
        ),
        tuple(record.positions),
        record.positions,
        record.followers(trail.uses),
        tuple(_terms(trail, numbering, groups, {group.name for group in alike})),
        _splits_by_group(splits, numbering, groups),
    )


def _freeze_attention(marks: Mapping[str, Marks], trail: Trail) -> None:
    """Keep queries, keys and values, and what the layers that make them read.

    Their channels belong to heads, and the code around them reshapes to the width that it reads.
    """
    labels = trail.labels
    if not trail.attended:
        return
    attended = np.unique(labels.roots(np.concatenate(trail.attended)))
    attended = attended[attended > 0]
    made, read = _flags(trail.made, labels), _flags(trail.read, labels)
    makers = [
        own
        for own in marks.values()
        if any(made[v].any() and np.isin(labels.roots(v), attended).any() for v in own.values())
    ]
    for own in makers:
        labels.freeze(vector for vector in own.values() if read[vector].any())
    labels.freeze([attended])


def _flags(vectors: Sequence[Vector], labels: Labels) -> Vector:
    """For each label 1 where one of some vectors has it, itself and not one of its set."""
    found = np.zeros(labels.count, np.int64)
    for vector in vectors:
        found[vector] = 1
    return found


def _numbered(marks: Mapping[str, Marks], trail: Trail) -> tuple[_Numbering, list[Slot]]:
    """Number the groups and their units: a group is what one layer makes, and all tied to it.

    Returns:
        the numbers, and for each group the first dimension that makes it.
    """
    labels = trail.labels
    made, read = _flags(trail.made, labels), _flags(trail.read, labels)
    slots = [
        ((name, dim), vector, labels.roots(vector))
        for name, own in marks.items()
        for dim, vector in own.items()
    ]
    is_read = np.zeros(labels.count, np.int64)
    parts = Labels()
    parts.new(labels.count - 1)
    for _, vector, roots in slots:
        is_read[roots[read[vector] > 0]] = 1
    for _, vector, roots in slots:
        own = roots[(roots > 0) & (is_read[roots] > 0)]
        if made[vector].any() and len(own):
            parts.unite(own, own[:1])
    group, unit = np.full(labels.count, -1), np.zeros(labels.count, np.int64)
    numbers: dict[int, int] = {}
    units: list[int] = []
    firsts: list[Slot] = []
    for slot, vector, roots in slots:
        if not made[vector].any():
            continue
        for root in dict.fromkeys(roots[(roots > 0) & (is_read[roots] > 0)].tolist()):
            number = numbers.setdefault(int(parts.roots(np.array([root]))[0]), len(units))
            if number == len(units):
                units.append(0)
                firsts.append(slot)
            if group[root] < 0:
                group[root], unit[root] = number, units[number]
                units[number] += 1
    return _Numbering(labels, group, unit, units), firsts


def _places(
    model: nn.Module,
    marks: Mapping[str, Marks],
    numbering: _Numbering,
    read: Vector,
    record: CallRecord,
) -> Iterator[tuple[int, Place]]:
    """The places of all groups: for each module that has one of their tensors."""
    names = {id(tensor): name for name, tensor in tensors_by_name(model).items()}
    normed = set()
    for full, module, name, tensor in own_tensors(model):
        path = full.rpartition(".")[0]
        for dim, vector in marks[names[id(tensor)]].items():
            side = side_of(module, name, dim)
            if side is None or (side == "parameter" and full != names[id(tensor)]):
                continue
            wide = vector
            if side != "parameter":
                wide = np.tile(vector, side_size(module, side) // len(vector))
                normed.update([path] if side == "features" else [])
            for number, index, unit in numbering.of(wide):
                where = full if side == "parameter" else path
                is_read = bool(read[vector[index % len(vector)]].any())
                yield (
                    number,
                    Place(where, side, torch.tensor(index), torch.tensor(unit), dim, is_read),
                )
    for path, vector in record.normed.items():
        for number, index, unit in numbering.of(vector) if path not in normed else ():
            yield number, Place(path, "features", torch.tensor(index), torch.tensor(unit))


def _group_name(model: nn.Module, slot: Slot) -> str:
    path, _, name = slot[0].rpartition(".")
    return path if side_of(model.get_submodule(path), name, slot[1]) == "outputs" else slot[0]


def _is_read_alike(group: ChannelGroup) -> bool:
    """Whether each layer reads all units, and all of them equally often."""
    reading = [place for place in group.places if place.side == "inputs" or place.read]
    counts = [torch.bincount(place.unit, minlength=group.units) for place in reading]
    return bool(counts) and all(bool((count == count[0]).all()) for count in counts)


def _terms(
    trail: Trail, numbering: _Numbering, groups: Sequence[ChannelGroup], removable: set[str]
) -> Iterator[Term]:
    """The products of a pass, with the share that each group has in their dimensions."""

    def dimension(size: Size) -> Dimension:
        if isinstance(size, int):
            return Dimension(size, {})
        units = {
            groups[number].name: len(places) / groups[number].units
            for number, places, _ in numbering.of(size)
            if groups[number].name in removable
        }
        return Dimension(len(size), units)

    for product in trail.products:
        yield Term(product.coefficient, tuple(map(dimension, product.sizes)))


def _splits_by_group(
    splits: Sequence[Split], numbering: _Numbering, groups: Sequence[ChannelGroup]
) -> dict[str, dict[SplitPlace, int]]:
    found: dict[str, dict[SplitPlace, int]] = {}
    for split in splits:
        for number, _, _ in numbering.of(split.labels):
            found.setdefault(groups[number].name, {})[split.place] = len(split.place[1])
    return found
