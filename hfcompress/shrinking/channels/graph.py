"""Which channels of a network have to go together, found by the Torch-Pruning library.

A residual connection adds channel to channel, a batch norm and a depthwise convolution work on
each alone: a filter can go only with all of them. (Fang et al. 2023, DepGraph, arXiv 2301.12900.)
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Batch, run_on
from hfcompress.calibration.hooks import evaluating, first_tensor
from hfcompress.errors import ModelError, TargetError, first_line
from hfcompress.utils import require

Side = Literal["outputs", "inputs", "features", "parameter"]
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Place:
    """Where the channels of a group lie in one module.

    Attributes:
        module: its path; of a bare parameter (``side`` is ``"parameter"``) its own.
        side: the outputs or inputs of a layer, the features of a norm, a parameter's dimension.
        index: numbers of the outputs, inputs or features.
        unit: for each of them the number of the unit that it belongs to.
        dimension: of a bare parameter.
    """

    module: str
    side: Side
    index: Tensor
    unit: Tensor
    dimension: int = 0


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
class ChannelGraph:
    """What `trace` finds.

    Attributes:
        groups: in the order in which data pass their first layers.
        layers: paths of convolutions and Linears, in the order in which they are called.
        positions: for each layer, how often its weight is applied for one row (pixels, tokens).
        norms: layer -> the batch norm that alone reads it.
    """

    groups: tuple[ChannelGroup, ...]
    layers: tuple[str, ...]
    positions: dict[str, float]
    norms: dict[str, str]


def trace(model: nn.Module, batch: Batch) -> ChannelGraph:
    """Run a model once and find its groups of channels; its outputs' own channels are in none.

    Args:
        model: any module; left as it was.
        batch: one row or more, labels not used.

    Raises:
        MissingExtraError: Torch-Pruning is not installed.
        ModelError: the model cannot be run, or traced.
        TargetError: it has no channels that could go.
    """
    pruning: Any = require("torch_pruning", "vision")
    rows = {key: value[:1] for key, value in batch.items() if key != "labels"}
    calls: dict[str, float] = {}
    # A copy: the library follows gradients, through frozen layers too, and holds on to them.
    model = copy.deepcopy(model).requires_grad_(True)
    with evaluating(model), torch.enable_grad(), _counted(model, calls):
        graph = pruning.DependencyGraph()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what it says of bare parameters is wanted here
                graph.build_dependency(
                    model,
                    example_inputs=rows,
                    # An operation of its own behind the last layer marks what is put out.
                    forward_fn=lambda network, inputs: _logits(run_on(network, inputs)) * 1,
                    verbose=False,
                )
        except Exception as error:  # whatever a forward raises is about this model
            raise ModelError(
                f"{type(model).__name__} cannot be traced on a calibration row: {first_line(error)}"
            ) from error
    found = [_group(model, items) for items in graph.get_all_groups()]
    order = {name: number for number, name in enumerate(calls)}
    groups = _well_read([group for group in found if group is not None])
    if not groups:
        raise TargetError(f"{type(model).__name__} has no channels that may go")
    return ChannelGraph(
        tuple(sorted(groups, key=lambda group: order.get(group.name, 0))),
        tuple(calls),
        calls,
        dict(_followed_by_norm(model, graph)),
    )


def _group(model: nn.Module, items: Any) -> ChannelGroup | None:
    """A group of the library as ours; None where something in it cannot be cut."""
    names = {id(module): name for name, module in model.named_modules()}
    names |= {id(parameter): name for name, parameter in model.named_parameters()}
    places: list[Place] = []
    for item in items:
        node, made = item.dep.target, item.dep.handler.__name__ == "prune_out_channels"
        target: Any = node.module
        name = names.get(id(target))
        if name is None:
            if type(target).__name__ == "_OutputOp":
                return None  # the answer itself
            continue
        side = _side(target, made)
        if side is None:
            return None
        index, root = torch.tensor(item.idxs), torch.tensor(item.root_idxs)
        places.append(Place(name, side, index, root, node.pruning_dim % max(_dims(target), 1)))
    made_by = [p for p in places if p.side == "outputs"]
    if not made_by or not all(_cuttable(model, place) for place in places):
        return None
    order = [name for name, _ in model.named_modules()]
    unit_of = _units(model, places, len(items[0].idxs))
    places = [
        Place(p.module, p.side, p.index, unit_of[p.unit], p.dimension) for p in places
    ]  # fmt: skip
    first = min(made_by, key=lambda place: order.index(place.module))
    return ChannelGroup(first.module, int(unit_of.max()) + 1, tuple(places))


def _well_read(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """Those whose readers read every unit alike, and whose width nothing else counts on.

    Queries, keys and values that one layer makes are not: what follows reads the values alone.
    Such an attention also reshapes to the width of what it reads, which has to stay.
    """
    mixed = {place.module for group in groups if not _alike(group) for place in group.of("outputs")}
    return [
        group
        for group in groups
        if _alike(group) and not mixed & {place.module for place in group.of("inputs")}
    ]


def _alike(group: ChannelGroup) -> bool:
    counts = (torch.bincount(place.unit, minlength=group.units) for place in group.of("inputs"))
    return all(bool((count == count[0]).all()) and int(count[0]) > 0 for count in counts)


def _side(target: Any, made: bool) -> Side | None:
    if isinstance(target, nn.Parameter):
        return "parameter"
    if isinstance(target, _NORMS):
        return "features"
    if not isinstance(target, LAYERS):
        return None
    return "outputs" if made or is_depthwise(target) else "inputs"


def is_depthwise(module: nn.Module) -> bool:
    """Whether a layer works on each channel alone."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d)) and (
        module.groups == module.in_channels == module.out_channels > 1
    )


def groups_in(module: nn.Module) -> int:
    """In how many equal parts a module divides its channels, each of which must stay as wide."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    if isinstance(module, (nn.Conv1d, nn.Conv2d)) and not is_depthwise(module):
        return module.groups
    return 1


def _cuttable(model: nn.Module, place: Place) -> bool:
    """Whether a place can be cut as it is: groups must be whole, and not of one channel each."""
    if place.side == "parameter":
        return True
    module: Any = model.get_submodule(place.module)
    if module.weight is not None and sum(module.weight is p for p in _weights(model)) > 1:
        return False  # a tied weight would be cut twice
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
        return False
    groups = groups_in(module)
    if groups == 1:
        return True
    if isinstance(module, nn.GroupNorm):
        whole = module.num_channels
    else:
        whole = module.out_channels if place.side == "outputs" else module.in_channels
        if groups in (module.in_channels, module.out_channels):
            return False
    return len(place.index) == whole


def _weights(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        yield module._parameters.get("weight")


def _units(model: nn.Module, places: Sequence[Place], roots: int) -> Tensor:
    """For each channel the unit that it goes with: those at the same place in every group."""
    unit = torch.arange(roots)
    changed = True
    while changed:
        before = unit.clone()
        for place in places:
            if place.side == "parameter":
                continue
            groups = groups_in(model.get_submodule(place.module))
            if groups > 1:
                within = place.index % (len(place.index) // groups)
                least = torch.full((len(place.index) // groups,), roots)
                least.scatter_reduce_(0, within, unit[place.unit], "amin")
                unit[place.unit] = torch.minimum(unit[place.unit], least[within])
        changed = not torch.equal(unit, before)
    found: Tensor = unit.unique(return_inverse=True)[1]  # type: ignore[no-untyped-call]
    return found


def _dims(target: Any) -> int:
    return target.dim() if isinstance(target, nn.Parameter) else 0


def _followed_by_norm(model: nn.Module, graph: Any) -> Iterator[tuple[str, str]]:
    names = {id(module): name for name, module in model.named_modules()}
    for module, node in graph.module2node.items():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)) and len(node.outputs) == 1:
            reader = node.outputs[0].module
            if isinstance(reader, (nn.BatchNorm1d, nn.BatchNorm2d)):
                yield names[id(module)], names[id(reader)]


def _logits(result: Any) -> Tensor:
    logits = getattr(result, "logits", None)
    return logits if isinstance(logits, Tensor) else first_tensor(result)


@contextmanager
def _counted(model: nn.Module, calls: dict[str, float]) -> Iterator[None]:
    """Note how often each layer's weight is applied for one row."""
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, LAYERS):

            def note(layer: Any, _: Any, output: Tensor, name: str = name) -> None:
                outputs = layer.weight.shape[0]
                calls[name] = calls.get(name, 0.0) + output.numel() / outputs / len(output)

            handles.append(module.register_forward_hook(note))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
