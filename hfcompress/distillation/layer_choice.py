"""Which of a teacher's layers a shallower student starts from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfcompress.distillation.layer_map import uniform_layer_map
from hfcompress.distillation.unit_importance import layer_norms
from hfcompress.errors import ConfigError
from hfcompress.models.architectures import blocks

Init = Literal["every-other", "first", "importance"]
Batch = Mapping[str, Tensor]


def choose_layers(
    teacher: nn.Module,
    layers: int | Sequence[int] | None,
    init: Init = "every-other",
    calibration: Iterable[Batch] | None = None,
) -> tuple[int, ...]:
    """The teacher's layers that a student keeps, in order, counted from 0.

    ``every-other`` spaces them evenly and ends with the last one (6 to 3: 1, 3, 5); ``first``
    takes the lowest; ``importance`` those that change the hidden states most. A family whose
    first layer has other parts than the rest (ModernBERT) always keeps it as the first.

    Args:
        teacher: a model with repeated layers.
        layers: how many, or which; None keeps all.
        init: how to choose where ``layers`` is a number.
        calibration: batches of model inputs for ``importance``; without any it goes by the
            weights alone.

    Raises:
        ConfigError: more layers than there are, none, or a number that is no layer.
    """
    count = len(blocks(teacher))
    if layers is None:
        return tuple(range(count))
    if isinstance(layers, int):
        if not 1 <= layers <= count:
            raise ConfigError(f"layers is {layers} and the teacher has {count}; write 1 to {count}")
        chosen = _choose(teacher, layers, init, calibration)
    else:
        chosen = tuple(layers)
        if not chosen or not all(0 <= number < count for number in chosen):
            raise ConfigError(
                f"layers {list(chosen)} are not among the teacher's, which count from 0 to "
                f"{count - 1}"
            )
    return _fitting(teacher, chosen)


def _choose(
    teacher: nn.Module, keep: int, init: Init, calibration: Iterable[Batch] | None
) -> tuple[int, ...]:
    count = len(blocks(teacher))
    if init == "first":
        return tuple(range(keep))
    if init == "every-other":
        return tuple(uniform_layer_map(keep, count).values())
    scores = layer_norms(teacher) if calibration is None else block_influence(teacher, calibration)
    return tuple(sorted(torch.tensor(scores).topk(keep).indices.tolist()))


def _fitting(teacher: nn.Module, chosen: tuple[int, ...]) -> tuple[int, ...]:
    """The choice, with layer 0 as the first where no other layer fits there."""
    layers = list(blocks(teacher).values())
    parts = [set(layer.state_dict()) for layer in (layers[0], layers[chosen[0]])]
    return chosen if parts[0] == parts[1] else (0, *chosen[1:])


@torch.no_grad()
def block_influence(model: nn.Module, batches: Iterable[Batch]) -> list[float]:
    """How much each layer turns the hidden states: 1 minus the mean cosine of what goes in and
    what comes out, over the tokens that are no padding (Men et al., 2403.03853).

    Args:
        model: a model with repeated layers; run in evaluation mode.
        batches: model inputs; labels in them are not shown.

    Returns:
        One number for each layer, in [0, 2].

    Raises:
        ConfigError: no batch.
    """
    layers = list(blocks(model).values())
    sums, tokens = torch.zeros(len(layers), dtype=torch.float64), 0
    current: dict[int, Tensor] = {}

    def watch(number: int) -> Any:
        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            current[number] = F.cosine_similarity(before.float(), after.float(), dim=-1)

        return keep

    handles = [
        layer.register_forward_hook(watch(number), with_kwargs=True)
        for number, layer in enumerate(layers)
    ]
    training = model.training
    model.eval()
    try:
        for batch in batches:
            model(**{name: value for name, value in batch.items() if name != "labels"})
            mask = batch.get("attention_mask", torch.ones_like(current[0])).bool()
            tokens += int(mask.sum())
            for number, cosine in current.items():
                sums[number] += cosine[mask].double().sum().cpu()
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    if not tokens:
        raise ConfigError("calibration holds no batch; give one at least, or None")
    influence: list[float] = (1 - sums / tokens).tolist()
    return influence
