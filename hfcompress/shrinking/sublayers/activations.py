"""Activations of the dense and of the shrinking model, layer after layer.

Each sublayer's statistics come from the model as shrunk so far; what its output projection is to
reproduce comes from the dense model: the residual stream behind the sublayer, so that each
sublayer also makes up for the drift of those before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration, finite_moments
from hfcompress.calibration.hooks import Call, Stop, first_tensor, recorded_calls, until_stop
from hfcompress.calibration.moments import Moments, MomentSum, input_rows
from hfcompress.errors import CalibrationError
from hfcompress.models.architectures import blocks, bridges
from hfcompress.models.sublayers import Sublayer


@dataclass(frozen=True)
class Seen:
    """One sublayer in one batch.

    Attributes:
        inputs: of its output projection, batch x length x (units * size).
        output: of its output projection, batch x length x features.
        residual: what the output is added to.
    """

    inputs: Tensor
    output: Tensor
    residual: Tensor


class Stream:
    """One model's hidden states in front of the layer that is next, for every batch.

    Args:
        model: of a known family, in eval mode.
        calibration: the batches.

    Raises:
        CalibrationError: a model whose layers are not called one after the other.
    """

    def __init__(self, model: nn.Module, calibration: Calibration) -> None:
        self.model = model
        self._layers = blocks(model)
        self._bridges = bridges(model)
        self._states: list[Tensor] = []
        self._calls: list[dict[str, Call]] = []
        for index in range(len(calibration.batches)):
            with recorded_calls(self._layers) as calls, torch.no_grad():
                calibration.run(model, index)
            if list(calls) != list(self._layers):
                raise CalibrationError(
                    f"the layers of {type(model).__name__} are not called one after the other"
                )
            self._states.append(next(iter(calls.values()))[0][0].clone())
            self._calls.append({name: (a[1:], k, None) for name, (a, k, _) in calls.items()})

    def look(self, part: Sublayer, index: int) -> Seen:
        """A sublayer of the next layer at work on one batch; what follows it is not computed."""
        notes: dict[str, Tensor] = {}
        with _watching(self.model, [part], notes, stop_at=part.name):
            until_stop(partial(self._run, part.layer, index))
        return self._seen(part, notes, index)

    def pass_through(self, parts: Sequence[Sublayer], index: int) -> list[Seen]:
        """All sublayers of the next layer at work on one batch, which moves on behind it."""
        notes: dict[str, Tensor] = {}
        with _watching(self.model, parts, notes):
            after = self._run(parts[0].layer, index)
        seen = [self._seen(part, notes, index) for part in parts]
        self._states[index] = after
        return seen

    def advance(self, layer: str) -> None:
        """Move on behind a layer."""
        for index in range(len(self._states)):
            self._states[index] = self._run(layer, index)

    def _seen(self, part: Sublayer, notes: Mapping[str, Tensor], index: int) -> Seen:
        residual = notes[f"read {part.name}"]
        if part.window is not None:  # attention has the tokens in another order than the stream
            return Seen(notes[f"in {part.name}"], notes[f"out {part.name}"], residual)
        if part.prenorm:  # what is read is normalised; the stream itself goes around it
            residual = self._states[index]
            if part.kind == "neurons":
                residual = residual + notes[f"out {part.attention}"]
        return Seen(notes[f"in {part.name}"], notes[f"out {part.name}"], residual)

    @torch.no_grad()
    def _run(self, layer: str, index: int) -> Tensor:
        args, kwargs, _ = self._calls[index][layer]
        states = first_tensor(self._layers[layer](self._states[index], *args, **kwargs))
        if layer in self._bridges:
            return first_tensor(self._bridges[layer](states, *args[:1]))
        return states


class Streams:
    """The dense model's stream beside the shrinking one's.

    Args:
        dense, shrunk: two models, in eval mode; the same one for a first look.
        calibration: the batches.
        follow_dense: targets make up for the drift of the residual stream, too (not where
            attention has windows).
        weights: for each sublayer and batch, how much each real token counts; all alike where a
            sublayer has none.
    """

    def __init__(
        self,
        dense: nn.Module,
        shrunk: nn.Module,
        calibration: Calibration,
        follow_dense: bool,
        weights: Mapping[str, Sequence[Tensor]],
    ) -> None:
        self._calibration = calibration
        self._follow = follow_dense
        self._weights = weights
        self._dense = Stream(dense, calibration)
        self._shrunk = self._dense if shrunk is dense else Stream(shrunk, calibration)
        self._targets: dict[str, list[Tensor]] = {}
        self._batches = range(len(calibration.batches))

    def dense_moments(self, parts: Sequence[Sublayer]) -> dict[str, Moments]:
        """Moments of all sublayers of the next layer in the dense model, which moves on.

        Raises:
            CalibrationError: NaN in the inputs, or nothing but padding.
        """
        sums = {part.name: MomentSum() for part in parts}
        for index in self._batches:
            seen = self._dense.pass_through(parts, index)
            for part, one in zip(parts, seen, strict=True):
                self._add(sums[part.name], part, one, one.output, index)
        return {name: finite_moments(name, total) for name, total in sums.items()}

    def enter(self, parts: Sequence[Sublayer]) -> None:
        """Note what the next layer's sublayers put out in the dense model, which moves on."""
        self._targets = {part.name: [] for part in parts}
        for index in self._batches:
            seen = self._dense.pass_through(parts, index)
            for part, one in zip(parts, seen, strict=True):
                wanted = one.output + one.residual if self._follows(part) else one.output
                self._targets[part.name].append(wanted)

    def moments(self, part: Sublayer) -> Moments:
        """Moments of a sublayer's inputs, as shrunk so far, with what it should put out.

        Args:
            part: a sublayer of the layer that was entered.

        Raises:
            CalibrationError: NaN in the inputs, or nothing but padding.
        """
        total = MomentSum()
        for index in self._batches:
            now = self._shrunk.look(part, index)
            target = self._targets[part.name][index]
            goal = target - now.residual if self._follows(part) else target
            self._add(total, part, now, goal, index)
        return finite_moments(part.name, total)

    def _follows(self, part: Sublayer) -> bool:
        return self._follow and part.window is None

    def leave(self, layer: str) -> None:
        """The shrunk model moves on behind the layer that was entered."""
        self._shrunk.advance(layer)

    def _add(
        self, total: MomentSum, part: Sublayer, seen: Seen, target: Tensor, index: int
    ) -> None:
        tokens = self._calibration.tokens(index)
        if tokens is not None and not bool(tokens.any()):
            return
        linear = part.out(self._shrunk.model)
        weights = self._weights.get(part.name)
        total.add(
            input_rows(linear, seen.inputs, tokens),
            {part.name: input_rows(linear, target, tokens)},
            None if weights is None else weights[index],
        )


@contextmanager
def _watching(
    model: nn.Module,
    parts: Sequence[Sublayer],
    notes: dict[str, Tensor],
    stop_at: str | None = None,
) -> Iterator[None]:
    """Note what sublayers read, and what goes into and out of their output projections."""

    def reads(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        notes[f"read {name}"] = args[0]

    def puts_out(name: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        notes[f"in {name}"], notes[f"out {name}"] = args[0], output
        if name == stop_at:
            raise Stop

    hooks = []
    for name in dict.fromkeys(name for part in parts for name in (part.attention, part.name)):
        hooks.append(model.get_submodule(name).register_forward_hook(partial(puts_out, name)))
    for part in parts:
        first = model.get_submodule(part.producers[0])
        hooks.append(first.register_forward_pre_hook(partial(reads, part.name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
