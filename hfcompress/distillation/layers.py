"""Which layers of a student and its teacher are read and compared."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from hfcompress.distillation.config import TeacherTermsConfig
from hfcompress.distillation.layer_map import check_layer_map, uniform_layer_map
from hfcompress.distillation.teachers import TeacherLike
from hfcompress.errors import ConfigError, ModelError
from hfcompress.models.architectures import blocks, family_of


def layer_map_of(
    student: nn.Module, teacher: TeacherLike, config: TeacherTermsConfig
) -> dict[int, int]:
    """Student's layer -> teacher's, by hand or evenly spaced; empty where none are compared.

    Kept outputs of as many layers as the student has (``hidden_layers``) are followed in order.

    Raises:
        ConfigError: a layer out of range, or a teacher whose layers are not known.
        ModelError: a model without repeated layers.
    """
    if not config.compares_layers:
        return {}
    mine = _count_layers(student)
    if not isinstance(teacher, nn.Module):
        kept = sorted(getattr(teacher, "hidden_layers", ()))
        if config.layer_map is None and len(kept) == mine:
            return dict(enumerate(kept))
        if config.layer_map is None:
            raise ConfigError(
                "how many layers a teacher has that is no model is not known; give layer_map "
                "when layers are compared"
            )
        return check_layer_map(
            config.layer_map, mine, max(config.layer_map.values(), default=0) + 1
        )
    theirs = _count_layers(teacher)
    if config.layer_map is None:
        return uniform_layer_map(mine, theirs)
    return check_layer_map(config.layer_map, mine, theirs)


def _count_layers(model: nn.Module) -> int:
    count = len(blocks(model))
    if not count:
        raise ModelError(
            f"{type(model).__name__} has no repeated layers that could be compared; set "
            "hidden_weight, attention_weight and value_weight to 0"
        )
    return count


def wanted_layers(
    config: TeacherTermsConfig, mapped: set[int], last: set[int]
) -> dict[str, Collection[int]]:
    """Which layers' outputs the losses need, as `LayerWatch` takes them.

    Args:
        config: the losses.
        mapped: layers that are compared.
        last: those of them whose value relation is.
    """
    return {
        "hidden": mapped if config.hidden_weight else (),
        "attentions": mapped if config.attention_weight else (),
        "values": last if config.value_weight else (),
    }


def relation_heads(model: nn.Module) -> int | None:
    """The student's attention heads; None where they are not known."""
    family = family_of(model)
    return None if family is None else int(getattr(model.config, family.heads))
