"""Whole layers: those whose removal changes the predictions least are dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from hfcompress.errors import ConfigError
from hfcompress.models.architectures import blocks
from hfcompress.models.surgery import keep_layers
from hfcompress.shrinking.plan import ShrinkContext
from hfcompress.shrinking.quality import divergence, predictions


def drop_layers(model: nn.Module, keep: int, context: ShrinkContext) -> tuple[int, ...]:
    """Drop layers until ``keep`` are left.

    Args:
        model: changed in place.
        keep: how many layers to keep.
        context: rows and the dense model's predictions.

    Returns:
        the numbers of the dropped layers, ascending.

    Raises:
        ConfigError: the model has fewer layers.
    """
    layers = list(blocks(model).values())
    if keep > len(layers):
        raise ConfigError(f"layers {keep} is above what the model has; it has {len(layers)}")
    rows, dense = context.reference()
    config = getattr(model, "config", None)
    fixed = {0} if getattr(config, "model_type", None) == "modernbert" else set()
    dropped: list[int] = []
    while len(layers) - len(dropped) > keep:
        context.progress("choosing layers", len(dropped), len(layers) - keep)
        losses: dict[int, float] = {}
        for number in sorted(set(range(len(layers))) - set(dropped) - fixed):
            with _skipped([layers[index] for index in [*dropped, number]]):
                losses[number] = divergence(dense, predictions(model, rows))
        dropped.append(min(losses, key=losses.__getitem__))
    if dropped:
        keep_layers(model, [number for number in range(len(layers)) if number not in dropped])
    return tuple(sorted(dropped))


@contextmanager
def _skipped(layers: list[nn.Module]) -> Iterator[None]:
    """Make layers return their input inside."""

    def skip(_: nn.Module, args: tuple[object, ...], result: object) -> object:
        if isinstance(result, Tensor):
            return args[0]
        assert isinstance(result, tuple)
        return (args[0], *result[1:])

    handles = [layer.register_forward_hook(skip) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
