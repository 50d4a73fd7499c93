"""``make_student``: a smaller model of the teacher's family, made from the teacher's weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hfcompress.config import Config
from hfcompress.distillation.layer_map import uniform_layer_map
from hfcompress.distillation.weight_folding import Batch, folded_weights, layer_norms
from hfcompress.errors import ConfigError
from hfcompress.models.architectures import blocks
from hfcompress.models.sublayers import head_size, known_family

Init = Literal["every-other", "first", "importance"]


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


Numbers = Annotated[tuple[int, ...], Field(strict=False)]
# Fields that are a second name for the hidden size where a teacher has them equal to it.
_FOLLOW_HIDDEN = ("embedding_size", "pooler_hidden_size", "pooler_output_size")
# Fields of vision configs that list the layers; left out, the config makes them anew.
_NAME_LAYERS = ("stage_names", "out_features", "out_indices")


class StudentConfig(Config):
    """The sizes of a student; those that are not given are the teacher's.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    layers: int | Numbers | None = Field(
        None, description="how many layers, or the teacher's layers by number from 0"
    )
    hidden: int | None = Field(None, ge=1, description="width of the hidden states")
    heads: int | None = Field(
        None, ge=1, description="attention heads; by default as many as keep the size of a head"
    )
    ffn: int | None = Field(None, ge=1, description="neurons of each feed-forward part")
    init: Init = Field(
        "every-other", description="which layers are kept where their number is given"
    )
    calibration_rows: int | None = Field(
        None,
        ge=1,
        description="training rows by which layers are chosen (init importance) and narrower "
        "hidden states are folded; without any the weights alone decide",
    )


def make_student(
    teacher: PreTrainedModel,
    *,
    layers: int | Sequence[int] | None = None,
    hidden: int | None = None,
    heads: int | None = None,
    ffn: int | None = None,
    init: Init = "every-other",
    calibration: Iterable[Batch] | None = None,
) -> PreTrainedModel:
    """A smaller model that starts from its teacher's weights.

    Layers are copied; neurons with a small norm product are left out, heads likewise and as a
    whole. Of narrower hidden states the weightiest features stay; with calibration rows, what the
    others told each layer is folded into the weights that remain. All layers of the student are
    equally wide, so that its config says all: plain ``from_pretrained`` reloads it. With the
    teacher's own sizes it gives the teacher's own logits.

    Args:
        teacher: a model of a family in `hfcompress.models.architectures`; left as it is.
        layers: how many, or which of the teacher's, counted from 0.
        hidden: width of the hidden states.
        heads: attention heads. By default ``hidden`` over the teacher's head size. Another number
            regroups what is kept: two heads that become one share one pattern of attention.
        ffn: neurons of each feed-forward part.
        init: which layers stay where their number is given (see `choose_layers`).
        calibration: batches of model inputs, at least some hundred tokens.

    Returns:
        A model of the teacher's class, dtype and device, in evaluation mode.

    Raises:
        ConfigError: a size above the teacher's, or sizes that do not go together.
        TargetError: a family that is not known.
    """
    known_family(teacher)
    batches = None if calibration is None else list(calibration)
    chosen = choose_layers(teacher, layers, init, batches)
    config = _smaller_config(teacher, chosen, hidden, heads, ffn)
    build: Any = type(teacher)._from_config
    student: PreTrainedModel = build(
        config, attn_implementation=cast(Any, teacher.config)._attn_implementation
    )
    student = cast(Any, student).to(device=teacher.device, dtype=teacher.dtype).eval()
    student.load_state_dict(folded_weights(teacher, student, chosen, batches))
    return student


def check_sizes(
    teacher: PreTrainedModel,
    *,
    layers: int | Sequence[int] | None = None,
    hidden: int | None = None,
    heads: int | None = None,
    ffn: int | None = None,
) -> None:
    """Refuse sizes that `make_student` would, without making anything.

    Raises:
        ConfigError, TargetError: as `make_student`.
    """
    known_family(teacher)
    _smaller_config(teacher, choose_layers(teacher, layers), hidden, heads, ffn)


def _smaller_config(
    teacher: PreTrainedModel,
    chosen: Sequence[int],
    hidden: int | None,
    heads: int | None,
    ffn: int | None,
) -> Any:
    """The teacher's config with the student's sizes.

    Raises:
        ConfigError: sizes that the teacher cannot give.
    """
    own = cast(Any, teacher.config)
    sizes = {"hidden": (hidden, own.hidden_size), "heads": (heads, own.num_attention_heads)}
    sizes["ffn"] = (ffn, _ffn_width(teacher))
    for name, (wanted, there) in sizes.items():
        if wanted is not None and wanted > there:
            raise ConfigError(f"{name} is {wanted} and the teacher has {there}; write less")
    hidden = hidden or own.hidden_size
    heads = heads or max(1, hidden // head_size(teacher))
    _check_heads(teacher, hidden, heads)
    changes: dict[str, Any] = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": len(chosen),
        known_family(teacher).ffn_width: ffn or _ffn_width(teacher),
    }
    for field in _FOLLOW_HIDDEN:
        if getattr(own, field, None) == own.hidden_size:
            changes[field] = hidden
    if getattr(own, "layer_types", None) is not None:
        changes["layer_types"] = [own.layer_types[number] for number in chosen]
    attributes = own.attribute_map  # DistilBERT and GPT-2 call the sizes by names of their own
    data = own.to_dict() | {attributes.get(name, name): item for name, item in changes.items()}
    if len(chosen) != own.num_hidden_layers:
        for field in _NAME_LAYERS:
            data.pop(field, None)
    return type(own).from_dict(data)


def _ffn_width(teacher: PreTrainedModel) -> int:
    family = known_family(teacher)
    layer = next(iter(blocks(teacher).values()))
    out = cast(Any, layer.get_submodule(family.ffn_out))
    width: int = out.in_features if hasattr(out, "in_features") else out.nx
    return width


def _check_heads(teacher: PreTrainedModel, hidden: int, heads: int) -> None:
    """Refuse widths that whole heads of the teacher cannot make up.

    Raises:
        ConfigError: such a width, or a regrouping that the family's positions do not allow.
    """
    size = head_size(teacher)
    if hidden % size or hidden % heads:
        raise ConfigError(
            f"hidden {hidden} with {heads} heads does not fit: hidden must be a multiple of "
            f"heads and of the teacher's head size, {size}"
        )
    own = cast(Any, teacher.config)
    by_position = hasattr(own, "rope_parameters") or not known_family(teacher).free_heads
    if hidden // heads != size and by_position:
        raise ConfigError(
            f"heads of {hidden // heads} cannot be made from heads of {size} in this family, "
            f"whose positions belong to a head; write heads: {hidden // size}"
        )
