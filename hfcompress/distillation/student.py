"""``make_student``: a smaller model of the teacher's family, initialised with its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from hfcompress.config import Config
from hfcompress.distillation.layer_map import uniform_layer_map
from hfcompress.distillation.weight_folding import (
    Batch,
    copied_weights,
    folded_weights,
    layer_norms,
)
from hfcompress.errors import ConfigError
from hfcompress.models.architectures import blocks, stage_of
from hfcompress.models.matrices import weight_matrix
from hfcompress.models.modeling_embedding import DENSE, EmbeddingModel
from hfcompress.models.sublayers import head_size, known_family

Init = Literal["every-other", "first", "importance"]


def choose_layers(
    teacher: nn.Module,
    layers: int | Sequence[int] | None,
    init: Init = "every-other",
    calibration: Iterable[Batch] | None = None,
) -> tuple[int, ...]:
    """Return the teacher's layers that a student keeps, in order, counted from 0.

    ``every-other``: evenly spaced, with the last one (6 to 3: 1, 3, 5); ``first``: the lowest;
    ``importance``: the ones that change the hidden states most. If the first layer differs from
    the others in structure (ModernBERT), it is always kept as the first. Where layers form stages
    (Swin), each stage keeps a share of its layers, at least one.

    Args:
        teacher: a model with repeated layers.
        layers: their number, or the layers themselves; None keeps all.
        init: how to choose if ``layers`` is a number.
        calibration: batches of model inputs for ``importance``; with None it uses the weights.

    Raises:
        ConfigError: layers out of range, or none; a stage without a layer.
    """
    count = len(blocks(teacher))
    if layers is None:
        return tuple(range(count))
    if isinstance(layers, int):
        if not 1 <= layers <= count:
            raise ConfigError(f"layers is {layers} and the teacher has {count}; use 1 to {count}")
        chosen = _choose(teacher, layers, init, calibration)
    else:
        chosen = tuple(layers)
        if not chosen or not all(0 <= number < count for number in chosen):
            raise ConfigError(
                f"layers {list(chosen)} are out of range; use the teacher's layers 0 to {count - 1}"
            )
    _check_stages(teacher, chosen)
    return _fitting(teacher, chosen)


def _choose(
    teacher: nn.Module, keep: int, init: Init, calibration: Iterable[Batch] | None
) -> tuple[int, ...]:
    scores: list[float] = []
    if init == "importance":
        known = calibration is not None
        scores = block_influence(teacher, calibration or ()) if known else layer_norms(teacher)
    chosen: list[int] = []
    stages = _stages(teacher)
    for stage, kept in zip(
        stages, _kept_by_stage([len(stage) for stage in stages], keep), strict=True
    ):
        if init == "first":
            chosen += stage[:kept]
        elif init == "every-other":
            chosen += [stage[place] for place in uniform_layer_map(kept, len(stage)).values()]
        else:
            best = torch.tensor([scores[layer] for layer in stage]).topk(kept).indices
            chosen += sorted(stage[place] for place in best.tolist())
    return tuple(chosen)


def _stages(teacher: nn.Module) -> list[list[int]]:
    """Return the numbers of the layers of each stage; one stage where layers form none."""
    stages: dict[int, list[int]] = {}
    for number, name in enumerate(blocks(teacher)):
        stages.setdefault(stage_of(teacher, name), []).append(number)
    return list(stages.values())


def _kept_by_stage(counts: Sequence[int], keep: int) -> list[int]:
    """Return how many layers each stage keeps: at least one, and else its share.

    Raises:
        ConfigError: fewer layers than stages.
    """
    if keep < len(counts):
        raise ConfigError(
            f"layers is {keep} and the teacher has {len(counts)} stages; use at least {len(counts)}"
        )
    kept = [1] * len(counts)
    while sum(kept) < keep:
        shares = [have / count for have, count in zip(kept, counts, strict=True)]
        kept[shares.index(min(shares))] += 1
    return kept


def _check_stages(teacher: nn.Module, chosen: Sequence[int]) -> None:
    """Refuse a choice that leaves a stage without a layer, or changes the order of stages.

    Raises:
        ConfigError: such a choice.
    """
    stages = _stages(teacher)
    if len(stages) == 1:
        return
    order = [next(i for i, stage in enumerate(stages) if number in stage) for number in chosen]
    if sorted(set(order)) != list(range(len(stages))) or order != sorted(order):
        shown = ", ".join(f"{stage[0]}-{stage[-1]}" for stage in stages)
        raise ConfigError(
            f"layers {list(chosen)} do not keep a layer of each stage, in order; the teacher's "
            f"stages are {shown}"
        )


def _fitting(teacher: nn.Module, chosen: tuple[int, ...]) -> tuple[int, ...]:
    """Return the choice, with layer 0 as the first if the chosen one has another structure."""
    layers = list(blocks(teacher).values())
    parts = [set(layer.state_dict()) for layer in (layers[0], layers[chosen[0]])]
    return chosen if parts[0] == parts[1] else (0, *chosen[1:])


@torch.no_grad()
def block_influence(model: nn.Module, batches: Iterable[Batch]) -> list[float]:
    """Return 1 minus the mean cosine of each layer's input and output (Men et al., 2403.03853).

    Padding does not count.

    Args:
        model: a model with repeated layers; run in evaluation mode.
        batches: model inputs; labels are dropped.

    Returns:
        One number per layer, in [0, 2].

    Raises:
        ConfigError: no batches.
    """
    layers = list(blocks(model).values())
    sums, tokens = (torch.zeros(len(layers), dtype=torch.float64) for _ in range(2))
    current: dict[int, Tensor] = {}

    def record(number: int) -> Callable[..., None]:
        def keep(
            module: nn.Module,
            args: tuple[Tensor, ...],
            kwargs: Mapping[str, Tensor],
            output: Tensor | tuple[Tensor, ...],
        ) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            current[number] = F.cosine_similarity(before.float(), after.float(), dim=-1)

        return keep

    handles = [
        layer.register_forward_hook(record(number), with_kwargs=True)
        for number, layer in enumerate(layers)
    ]
    training = model.training
    model.eval()
    try:
        for batch in batches:
            model(**{name: value for name, value in batch.items() if name != "labels"})
            mask = batch.get("attention_mask")
            for number, cosine in current.items():
                counted = cosine if mask is None else cosine[mask.bool()]
                sums[number] += counted.double().sum().cpu()
                tokens[number] += counted.numel()
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    if not tokens.all():
        raise ConfigError("calibration is empty; give at least one batch, or None")
    influence: list[float] = (1 - sums / tokens).tolist()
    return influence


Numbers = Annotated[tuple[int, ...], Field(strict=False)]
# Config fields that change with the hidden size if they equal it.
_EQUAL_TO_HIDDEN = ("embedding_size", "pooler_hidden_size", "pooler_output_size")
# Fields of vision configs that list the layers; the config derives them if they are missing.
_LISTS_OF_LAYERS = ("stage_names", "out_features", "out_indices")


class StudentConfig(Config):
    """The sizes of a student; by default the teacher's.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    layers: int | Numbers | None = Field(
        None, description="number of layers, or a list of the teacher's layers, counted from 0"
    )
    hidden: int | None = Field(None, ge=1, description="width of the hidden states")
    heads: int | None = Field(
        None,
        ge=1,
        description="attention heads; by default hidden divided by the teacher's head size",
    )
    ffn: int | None = Field(None, ge=1, description="neurons of each feed-forward block")
    init: Init = Field("every-other", description="which layers are kept if layers is a number")
    calibration_rows: int | None = Field(
        None,
        ge=1,
        description="training rows for choosing layers (init importance) and for folding narrower "
        "hidden states; by default only the weights are used",
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
    """Return a smaller model with weights from its teacher.

    Layers are copied; heads and neurons with the smallest norm products are dropped. Narrower
    hidden states keep the features with the largest norms; with calibration rows, a least-squares
    estimate of the dropped features is folded into the remaining weights. All layers have equal
    sizes, so that plain ``from_pretrained`` reloads the student. With the teacher's sizes the
    student gives the teacher's logits.

    Args:
        teacher: a model of a family in `hfcompress.models.architectures`; it does not change.
        layers: number of layers, or a list of the teacher's, counted from 0. Of a teacher whose
            layers form stages (Swin) only their number can change.
        hidden: width of the hidden states.
        heads: attention heads; by default ``hidden`` divided by the teacher's head size. Another
            number regroups the kept rows: merged heads share one attention pattern.
        ffn: neurons of each feed-forward block.
        init: which layers are kept if ``layers`` is a number (see `choose_layers`).
        calibration: batches of model inputs, at least a few hundred tokens.

    Returns:
        A model of the teacher's class, dtype and device, in evaluation mode.

    Raises:
        ConfigError: a size above the teacher's, or sizes that do not fit together.
        TargetError: an unknown model family.
    """
    known_family(teacher)
    batches = None if calibration is None else list(calibration)
    chosen = choose_layers(teacher, layers, init, batches)
    config = _smaller_config(teacher, chosen, hidden, heads, ffn)
    build: Callable[..., PreTrainedModel] = type(teacher)._from_config
    student = build(config, attn_implementation=teacher.config._attn_implementation)
    module: nn.Module = student
    module.to(device=teacher.device, dtype=teacher.dtype).eval()
    if known_family(teacher).staged:
        student.load_state_dict(copied_weights(teacher, student, chosen))
    else:
        weights = folded_weights(teacher, student, chosen, batches)
        own = {name: one for name, one in weights.items() if not name.startswith(f"{DENSE}.")}
        student.load_state_dict(own)
    if isinstance(student, EmbeddingModel):
        student.take_layout(cast(EmbeddingModel, teacher))
    return student


def check_sizes(
    teacher: PreTrainedModel,
    *,
    layers: int | Sequence[int] | None = None,
    hidden: int | None = None,
    heads: int | None = None,
    ffn: int | None = None,
) -> None:
    """Refuse the sizes that `make_student` refuses, without making a student.

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
) -> PreTrainedConfig:
    """Return the teacher's config with the student's sizes.

    Raises:
        ConfigError: sizes above the teacher's, or that do not fit together.
    """
    if known_family(teacher).staged:
        return _fewer_layers(teacher, chosen, hidden or heads or ffn)
    own = cast(_SizesConfig, teacher.config)
    sizes = {"hidden": (hidden, own.hidden_size), "heads": (heads, own.num_attention_heads)}
    sizes["ffn"] = (ffn, _ffn_width(teacher))
    for name, (wanted, there) in sizes.items():
        if wanted is not None and wanted > there:
            raise ConfigError(
                f"{name} is {wanted} and the teacher has {there}; use at most {there}"
            )
    hidden = hidden or own.hidden_size
    heads = heads or max(1, hidden // head_size(teacher))
    _check_heads(teacher, hidden, heads)
    changes: dict[str, object] = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": len(chosen),
        known_family(teacher).ffn_width: ffn or _ffn_width(teacher),
    }
    for field in _EQUAL_TO_HIDDEN:
        if getattr(own, field, None) == own.hidden_size:
            changes[field] = hidden
    layer_types: Sequence[str] | None = getattr(own, "layer_types", None)
    if layer_types is not None:
        changes["layer_types"] = [layer_types[number] for number in chosen]
    attributes = own.attribute_map  # DistilBERT and GPT-2 have their own names for the sizes
    data = own.to_dict() | {attributes.get(name, name): item for name, item in changes.items()}
    if len(chosen) != own.num_hidden_layers:
        for field in _LISTS_OF_LAYERS:
            data.pop(field, None)
    smaller: PreTrainedConfig = type(teacher.config).from_dict(data)
    return smaller


def _fewer_layers(
    teacher: PreTrainedModel, chosen: Sequence[int], size: int | None
) -> PreTrainedConfig:
    """Return the config of a teacher with stages, with the chosen number of layers in each.

    Raises:
        ConfigError: another size is to change.
    """
    if size is not None:
        raise ConfigError(
            f"the stages of {type(teacher).__name__} have widths and heads of their own; give "
            "layers only, and leave hidden, heads and ffn out"
        )
    depths = [sum(chosen.count(number) for number in stage) for stage in _stages(teacher)]
    data = teacher.config.to_dict() | {"depths": depths}
    smaller: PreTrainedConfig = type(teacher.config).from_dict(data)
    return smaller


class _SizesConfig(Protocol):
    """The fields of a transformer's config that a student's sizes change."""

    hidden_size: int
    num_attention_heads: int
    num_hidden_layers: int
    attribute_map: dict[str, str]

    def to_dict(self) -> dict[str, Any]: ...


def _ffn_width(teacher: PreTrainedModel) -> int:
    family = known_family(teacher)
    layer = next(iter(blocks(teacher).values()))
    return weight_matrix(layer.get_submodule(family.ffn_out)).shape[1]


def _check_heads(teacher: PreTrainedModel, hidden: int, heads: int) -> None:
    """Refuse widths that are not a multiple of the teacher's head size.

    Raises:
        ConfigError: such a width, or regrouped heads in a family with positions per head.
    """
    size = head_size(teacher)
    if hidden % size or hidden % heads:
        raise ConfigError(
            f"hidden {hidden} does not fit {heads} heads; use a multiple of heads and of the "
            f"teacher's head size, {size}"
        )
    by_position = hasattr(teacher.config, "rope_parameters") or not known_family(teacher).free_heads
    if hidden // heads != size and by_position:
        raise ConfigError(
            f"cannot make heads of size {hidden // heads} from heads of size {size}, because this "
            f"family encodes positions per head; write heads: {hidden // size}"
        )
