"""Layer after layer: each layer's statistics come from the model as pruned so far.

The repeated blocks of a model are passed one at a time. What flows between two blocks is kept
for every batch, so that a block is computed without the ones before it; where a model has no
chain of blocks (or layers lie outside of it) whole forward passes take their place. A second
stream with the dense weights tells what each layer should put out, if that is asked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.architectures import blocks
from hfcompress.pruning.calibration import Calibration, finite_moments
from hfcompress.pruning.moments import Moments, MomentSum, input_rows, output_rows
from hfcompress.pruning.tracing import (
    Group,
    call_order,
    evaluating,
    first_tensor,
    inputs_of,
    outputs_of,
    recorded_calls,
)

Modules = Mapping[str, nn.Module]


@torch.no_grad()
def layer_by_layer(
    model: nn.Module,
    modules: Modules,
    calibration: Calibration,
    *,
    dense_outputs: bool,
    memory: int,
) -> Iterator[dict[str, Moments]]:
    """Moments for one group of layers at a time; prune the group before asking for the next.

    Args:
        model: the model that is being pruned, in place.
        modules: the layers to be pruned.
        calibration: the examples.
        dense_outputs: give what each layer puts out in the dense model, too
            (``Moments.cross`` and ``Moments.output``).
        memory: bytes of activations to keep in memory; more go to a temporary file.

    Raises:
        CalibrationError: a layer that is never called, or NaN in its inputs.
    """
    with evaluating(model), tempfile.TemporaryDirectory() as folder:
        order = calibration.call_order(model, modules)
        chain = _chain(model, calibration)
        inside = {name: block for block in chain for name in modules if _within(name, block)}
        first = next((i for i, group in enumerate(order) if group.names[0] in inside), len(order))
        before, rest = order[:first], order[first:]
        after = [group for group in rest if group.names[0] not in inside]
        yield from _whole(model, modules, calibration, before, dense_outputs)
        if inside:
            streams = _Streams(model, chain, calibration, dense_outputs, memory, Path(folder))
            for block in chain:
                mine = {name: modules[name] for name in inside if inside[name] == block}
                yield from streams.block(block, mine)
        # Behind the blocks nothing dense is left to compare with.
        yield from _whole(model, modules, calibration, after, dense_outputs and not inside)


def _whole(
    model: nn.Module,
    modules: Modules,
    calibration: Calibration,
    groups: Sequence[Group],
    dense_outputs: bool,
) -> Iterator[dict[str, Moments]]:
    """Groups of layers by whole forward passes that end where the group's statistics are known."""
    dense = _Dense({name: modules[name] for group in groups for name in group.names})
    for group in groups:
        total = MomentSum()
        for index in range(len(calibration.batches)):

            def run(index: int = index) -> object:
                return calibration.run(model, index)

            _add(total, run, run, modules, group, calibration.tokens(index), dense_outputs, dense)
        yield {name: finite_moments(name, total) for name in group.names}


class _Streams:
    """What flows between the blocks, batch by batch: as pruned so far, and in the dense model."""

    def __init__(
        self,
        model: nn.Module,
        chain: Sequence[str],
        calibration: Calibration,
        dense_outputs: bool,
        memory: int,
        folder: Path,
    ) -> None:
        self._blocks = {name: model.get_submodule(name) for name in chain}
        self._calibration = calibration
        self._dense_outputs = dense_outputs
        self._calls: list[dict[str, tuple[tuple[Any, ...], dict[str, Any]]]] = []
        self.pruned: list[Tensor] = []
        self.dense: list[Tensor] = []
        store = _Store(memory, folder)
        for index in range(len(calibration.batches)):
            with recorded_calls(self._blocks) as calls:
                calibration.run(model, index)
            start = calls[chain[0]][0][0]
            self.pruned.append(store.keep(start))
            self.dense.append(store.keep(start) if dense_outputs else self.pruned[-1])
            # What flows between the blocks is computed anew; the rest of each call is kept.
            self._calls.append({name: (call[0][1:], call[1]) for name, call in calls.items()})

    def block(self, name: str, modules: Modules) -> Iterator[dict[str, Moments]]:
        """One block: its groups of layers, then the streams move on behind it."""
        dense = _Dense(modules)
        if modules:
            order = call_order(self._run(name, self.pruned, 0), modules)
            for group in order:
                yield self._group(name, modules, group, dense)
        for index in range(len(self.pruned)):
            if self._dense_outputs:
                with dense.swapped():
                    self.dense[index].copy_(first_tensor(self._run(name, self.dense, index)()))
            self.pruned[index].copy_(first_tensor(self._run(name, self.pruned, index)()))

    def _group(
        self, name: str, modules: Modules, group: Group, dense: _Dense
    ) -> dict[str, Moments]:
        total = MomentSum()
        for index in range(len(self.pruned)):
            pruned_run = self._run(name, self.pruned, index)
            dense_run = self._run(name, self.dense, index)
            tokens = self._calibration.tokens(index)
            _add(total, pruned_run, dense_run, modules, group, tokens, self._dense_outputs, dense)
        return {name: finite_moments(name, total) for name in group.names}

    def _run(self, name: str, stream: list[Tensor], index: int) -> Callable[[], Any]:
        args, kwargs = self._calls[index][name]
        return lambda: self._blocks[name](stream[index], *args, **kwargs)


class _Dense:
    """The dense weights and biases of some layers, to be swapped in for a while."""

    def __init__(self, modules: Modules) -> None:
        parameters = {
            id(parameter): parameter
            for module in modules.values()
            for parameter in module.parameters(recurse=False)
        }
        self._pairs = [(item, item.detach().clone()) for item in parameters.values()]

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The layers are dense inside."""
        pruned = [parameter.data for parameter, _ in self._pairs]
        try:
            for parameter, dense in self._pairs:
                parameter.data = dense
            yield
        finally:
            for (parameter, _), data in zip(self._pairs, pruned, strict=True):
                parameter.data = data


@dataclass
class _Store:
    """Keeps tensors in memory up to a limit, beyond it in files that are mapped into memory."""

    memory: int
    folder: Path
    used: int = 0
    files: int = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy."""
        self.used += tensor.nbytes
        if self.used <= self.memory or tensor.device.type != "cpu":
            return tensor.clone()
        self.files += 1
        path = str(self.folder / f"{self.files}.bin")
        mapped = torch.from_file(path, shared=True, size=tensor.numel(), dtype=tensor.dtype)
        return mapped.view(tensor.shape).copy_(tensor)


def _add(
    total: MomentSum,
    pruned_run: Callable[[], object],
    dense_run: Callable[[], object],
    modules: Modules,
    group: Group,
    tokens: Tensor | None,
    dense_outputs: bool,
    dense: _Dense,
) -> None:
    """Add one batch to the moments of one group of layers."""
    if tokens is not None and not bool(tokens.any()):
        return
    module = modules[group.names[0]]
    wanted: Sequence[dict[str, Tensor] | None] | None = None
    if dense_outputs:
        with dense.swapped():
            calls = outputs_of(dense_run, modules, group)
        wanted = [
            {name: output_rows(modules[name], y, tokens) for name, y in call.items()}
            for call in calls
        ]
    inputs = inputs_of(pruned_run, modules, group)
    for call, wish in zip(inputs, wanted or [None] * len(inputs), strict=True):
        total.add(input_rows(module, call, tokens), wish)


def _chain(model: nn.Module, calibration: Calibration) -> list[str]:
    """The blocks, if each is called once, with the output of the one before; else nothing."""
    found = blocks(model)
    if not found:
        return []
    with recorded_calls(found) as calls, torch.no_grad():
        calibration.run(model, 0)
    if list(calls) != list(found):
        return []
    ordered = list(calls.values())
    for (_, _, result), (args, _, _) in pairwise(ordered):
        if not args or args[0] is not result:
            return []
    first = ordered[0][0]
    return list(found) if first and isinstance(first[0], Tensor) else []


def _within(name: str, block: str) -> bool:
    return name == block or name.startswith(f"{block}.")
