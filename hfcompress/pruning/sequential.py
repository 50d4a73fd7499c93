"""Layer after layer: each layer's statistics come from the model as pruned so far.

Blocks are processed one at a time. The hidden states between two blocks are kept for every batch,
so that a block runs without the ones before it; layers outside a chain of blocks need whole
forward passes. With ``dense_outputs`` a second stream with the dense weights gives the outputs
that each layer should reproduce.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration, finite_moments
from hfcompress.calibration.hooks import (
    Group,
    Run,
    call_order,
    evaluating,
    first_tensor,
    inputs_of,
    outputs_of,
    recorded_calls,
)
from hfcompress.calibration.moments import Moments, MomentSum, input_rows, output_rows
from hfcompress.models.architectures import blocks
from hfcompress.storage.temporary import temporary_root

Modules = Mapping[str, nn.Module]
TokenWeights = Mapping[str, Sequence[Tensor]]
Arguments = tuple[tuple[object, ...], dict[str, object]]
"""Positional and keyword arguments of a block, without the first."""


@torch.no_grad()
def layer_by_layer(
    model: nn.Module,
    modules: Modules,
    calibration: Calibration,
    *,
    dense_outputs: bool,
    memory: int,
    token_weights: TokenWeights | None = None,
) -> Iterator[dict[str, Moments]]:
    """Moments for one group of layers at a time; prune the group before asking for the next.

    Args:
        model: the model that is being pruned, in place.
        modules: the layers to be pruned.
        calibration: the examples.
        dense_outputs: give what each layer puts out in the dense model, too
            (``Moments.cross`` and ``Moments.output``).
        memory: bytes of activations to keep in memory; more go to a temporary file.
        token_weights: for each layer and batch, how much each real token counts; layers that
            share an input share the mean of theirs. All tokens alike by default.

    Raises:
        CalibrationError: a layer that is never called, or NaN in its inputs.
    """
    with evaluating(model), tempfile.TemporaryDirectory(dir=temporary_root()) as folder:
        order = calibration.call_order(model, modules)
        chain = _chain(model, calibration)
        inside = {name: block for block in chain for name in modules if _within(name, block)}
        first = next((i for i, group in enumerate(order) if group.names[0] in inside), len(order))
        before, rest = order[:first], order[first:]
        after = [group for group in rest if group.names[0] not in inside]
        collector = _Collector(modules, calibration, token_weights or {})
        yield from _whole(model, collector, before, dense_outputs)
        if inside:
            streams = _Streams(model, chain, collector, dense_outputs, memory, Path(folder))
            for block in chain:
                mine = {name: modules[name] for name in inside if inside[name] == block}
                yield from streams.block(block, mine)
        # The blocks are pruned by now, so the dense outputs of later layers are no longer known.
        yield from _whole(model, collector, after, dense_outputs and not inside)


def _whole(
    model: nn.Module, collector: _Collector, groups: Sequence[Group], dense_outputs: bool
) -> Iterator[dict[str, Moments]]:
    """Groups of layers by whole forward passes that end where the group's statistics are known."""
    names = [name for group in groups for name in group.names if dense_outputs]
    dense = _Dense({name: collector.modules[name] for name in names})

    def run(index: int) -> Run:
        return lambda: collector.calibration.run(model, index)

    for group in groups:
        yield collector.moments(group, run, (run, dense) if dense_outputs else None)


@dataclass(frozen=True)
class _Collector:
    """Moments of one group of layers over all batches."""

    modules: Modules
    calibration: Calibration
    token_weights: TokenWeights

    def moments(
        self,
        group: Group,
        run: Callable[[int], Run],
        dense: tuple[Callable[[int], Run], _Dense] | None,
    ) -> dict[str, Moments]:
        """Collect.

        Args:
            group: layers with one input.
            run: batch -> the pass of the pruned model that reaches the layers.
            dense: batch -> the pass that gives their dense outputs, and the dense weights.
        """
        total = MomentSum()
        for index in range(len(self.calibration.batches)):
            tokens = self.calibration.tokens(index)
            if tokens is not None and not bool(tokens.any()):
                continue
            inputs = inputs_of(run(index), self.modules, group)
            weigh, done = self._weights(group, index), 0
            outputs: Sequence[dict[str, Tensor] | None] = [None] * len(inputs)
            if dense is not None:
                with dense[1].swapped():
                    outputs = outputs_of(dense[0](index), self.modules, group)
            for call, targets in zip(inputs, outputs, strict=True):
                rows = {
                    name: output_rows(self.modules[name], output, tokens)
                    for name, output in (targets or {}).items()
                }
                seen = input_rows(self.modules[group.names[0]], call, tokens)
                weights = None if weigh is None else weigh[done : done + seen.shape[1]]
                done += seen.shape[1]
                total.add(seen, rows, weights)
        return {name: finite_moments(name, total) for name in group.names}

    def _weights(self, group: Group, index: int) -> Tensor | None:
        found = [
            self.token_weights[name][index] for name in group.names if name in self.token_weights
        ]
        return torch.stack(found).mean(0) if found else None


class _Streams:
    """Hidden states between blocks, batch by batch: of the model as pruned so far, and dense."""

    def __init__(
        self,
        model: nn.Module,
        chain: Sequence[str],
        collector: _Collector,
        dense_outputs: bool,
        memory: int,
        folder: Path,
    ) -> None:
        self._blocks = {name: model.get_submodule(name) for name in chain}
        self._collector = collector
        calibration = collector.calibration
        self._dense_outputs = dense_outputs
        self._calls: list[dict[str, Arguments]] = []
        self.pruned: list[Tensor] = []
        self.dense: list[Tensor] = []
        self._store = store = _Store(memory, folder)
        for index in range(len(calibration.batches)):
            with recorded_calls(self._blocks) as calls:
                calibration.run(model, index)
            start = calls[chain[0]][0][0]
            self.pruned.append(store.keep(start))
            self.dense.append(store.keep(start) if dense_outputs else self.pruned[-1])
            # Keep each block's arguments but the first, which `_move` updates.
            self._calls.append({name: (call[0][1:], call[1]) for name, call in calls.items()})

    def block(self, name: str, modules: Modules) -> Iterator[dict[str, Moments]]:
        """Yield the moments of a block's groups, then replace the states by its outputs."""
        dense = _Dense(modules if self._dense_outputs else {})
        if modules:
            order = call_order(self._run(name, self.pruned, 0), modules)
            for group in order:
                goal = (partial(self._run, name, self.dense), dense)
                run = partial(self._run, name, self.pruned)
                yield self._collector.moments(group, run, goal if self._dense_outputs else None)
        for index in range(len(self.pruned)):
            if self._dense_outputs:
                with dense.swapped():
                    self._move(
                        self.dense, index, first_tensor(self._run(name, self.dense, index)())
                    )
            self._move(self.pruned, index, first_tensor(self._run(name, self.pruned, index)()))

    def _move(self, stream: list[Tensor], index: int, states: Tensor) -> None:
        if stream[index].shape == states.shape:
            stream[index].copy_(states)
        else:  # a stage of a convolutional network
            stream[index] = self._store.keep(states)

    def _run(self, name: str, stream: list[Tensor], index: int) -> Run:
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
