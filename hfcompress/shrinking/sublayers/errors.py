"""The loss of quality at each width of each sublayer, measured by the predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration
from hfcompress.calibration.moments import weight_of
from hfcompress.models.architectures import blocks
from hfcompress.models.matrices import weight_matrix, write_matrix
from hfcompress.models.sublayers import Sublayer
from hfcompress.shrinking.quality import divergence, predictions
from hfcompress.shrinking.sublayers.repair import Projection

_LEVELS = (0.0, 1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)
"""Errors of sublayers add up as this power of their roots: as the divergences themselves."""


def levels(widths: Sequence[int]) -> list[int]:
    """Some of the allowed widths, denser where narrow: between them errors are interpolated."""
    most = max(widths)
    return sorted({min(widths, key=lambda width: abs(width - level * most)) for level in _LEVELS})


def measured_errors(
    model: nn.Module,
    parts: Sequence[Sublayer],
    candidates: Mapping[str, Mapping[int, Projection]],
    rows: Calibration,
    dense: Sequence[Tensor],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[int, float]]:
    """Divergence from the dense model with one sublayer at one width, the others as they are.

    Args:
        model: left as it was.
        parts: its sublayers, in the order in which data pass them.
        candidates: by sublayer and width.
        rows: what is predicted.
        dense: the dense model's predictions.
        progress: receives count and total.

    Returns:
        by sublayer and width, the full width (the model as it is) included.
    """
    errors: dict[str, dict[int, float]] = {}
    as_it_is = divergence(dense, predictions(model, rows))
    replay = _Replay(model, rows)
    done, total = 0, sum(len(found) for found in candidates.values())
    for part in parts:
        errors[part.name] = {part.units(model): as_it_is}
        with replay.starting_at(part.layer):
            for width, projection in candidates[part.name].items():
                with _tried(part, model, projection):
                    errors[part.name][width] = divergence(dense, predictions(model, rows))
                done += 1
                progress(done, total)
    return errors


class _Replay:
    """Forward passes that start at a layer: what lies before has been computed already.

    Args:
        model: as it is.
        rows: what will be predicted, batch by batch in order.
    """

    def __init__(self, model: nn.Module, rows: Calibration) -> None:
        self._layers = blocks(model)
        self._batches = len(rows.batches)
        self._states: dict[str, list[Tensor]] = {name: [] for name in self._layers}
        self._rest: tuple[None, ...] | None = None
        hooks = []
        for name, layer in self._layers.items():

            def record(
                _: nn.Module,
                args: tuple[Tensor, ...],
                result: Tensor | tuple[Tensor, ...],
                name: str = name,
            ) -> None:
                self._states[name].append(args[0])
                self._rest = None if isinstance(result, Tensor) else (None,) * (len(result) - 1)

            hooks.append(layer.register_forward_hook(record))
        try:
            predictions(model, rows)
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def starting_at(self, start: str) -> Iterator[None]:
        """Layers before ``start`` pass on what they read; ``start`` reads what it read before."""
        calls = 0

        def passing(
            state: Tensor, *args: object, **kwargs: object
        ) -> Tensor | tuple[Tensor | None, ...]:
            return state if self._rest is None else (state, *self._rest)

        def replayed(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            nonlocal calls
            state = self._states[start][calls % self._batches]
            calls += 1
            return (state, *args[1:])

        before = list(self._layers)[: list(self._layers).index(start)]
        handle = self._layers[start].register_forward_pre_hook(replayed)
        try:
            for name in before:
                self._layers[name].forward = passing
            yield
        finally:
            handle.remove()
            for name in before:
                vars(self._layers[name]).pop("forward", None)


@contextmanager
def _tried(part: Sublayer, model: nn.Module, projection: Projection) -> Iterator[None]:
    """The sublayer has its units masked and the rest fitted anew inside; shapes stay."""
    linear = part.out(model)
    weight, bias = weight_of(linear), getattr(linear, "bias", None)
    before = weight.data, None if bias is None else bias.data
    wide = torch.zeros_like(weight_matrix(linear))
    wide[:, part.columns(projection.keep)] = projection.weight.to(wide)
    try:
        weight.data = torch.empty_like(weight)
        write_matrix(linear, wide)
        if bias is not None and projection.bias is not None:
            bias.data = projection.bias.to(bias)
        yield
    finally:
        weight.data = before[0]
        if bias is not None:
            bias.data = before[1]
