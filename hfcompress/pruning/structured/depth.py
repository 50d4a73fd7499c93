"""Whole layers: those whose absence moves the predictions least go, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from hfcompress.errors import ConfigError
from hfcompress.models.architectures import blocks
from hfcompress.models.surgery import keep_layers
from hfcompress.shrinking.sublayers.errors import divergence, predictions
from hfcompress.shrinking.sublayers.selection import Surroundings


def drop_layers(model: nn.Module, keep: int, around: Surroundings) -> tuple[int, ...]:
    """Drop layers until ``keep`` are left.

    Args:
        model: changed in place.
        keep: how many stay.
        around: rows and the dense model's predictions.

    Returns:
        the numbers of those that went, ascending.

    Raises:
        ConfigError: the model has fewer layers.
    """
    layers = list(blocks(model).values())
    if keep > len(layers):
        raise ConfigError(f"layers {keep} is above what the model has; it has {len(layers)}")
    assert around.judges is not None
    fixed = {0} if cast(Any, model).config.model_type == "modernbert" else set()
    gone: list[int] = []
    while len(layers) - len(gone) > keep:
        around.tell("choosing layers", len(gone), len(layers) - keep)
        losses: dict[int, float] = {}
        for number in sorted(set(range(len(layers))) - set(gone) - fixed):
            with _skipped([layers[index] for index in [*gone, number]]):
                seen = predictions(model, around.judges)
            losses[number] = divergence(around.predictions, seen)
        gone.append(min(losses, key=losses.__getitem__))
    if gone:
        keep_layers(model, [number for number in range(len(layers)) if number not in gone])
    return tuple(sorted(gone))


@contextmanager
def _skipped(layers: list[nn.Module]) -> Iterator[None]:
    """Layers pass on what they read, inside."""

    def skip(_: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
        return args[0] if isinstance(result, Tensor) else (args[0], *result[1:])

    handles = [layer.register_forward_hook(skip) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
