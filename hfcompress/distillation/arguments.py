"""``DistillationArguments``: training arguments with the options of distillation."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from functools import partial

from transformers import TrainingArguments

from hfcompress.config import option, option_metadata
from hfcompress.distillation.config import DistillationTrainingConfig
from hfcompress.errors import ConfigError

_option = partial(option, DistillationTrainingConfig)
_help = partial(option_metadata, DistillationTrainingConfig)


@dataclass
class DistillationArguments(TrainingArguments):
    """Training arguments with the fields of `DistillationTrainingConfig`.

    Raises:
        ConfigError: a value out of range, or an option without effect.
    """

    alpha: float = _option("alpha")
    alpha_end: float | None = _option("alpha_end")
    temperature: float = _option("temperature")
    temperature_end: float | None = _option("temperature_end")
    schedule: str = _option("schedule")
    logits_weight: float = _option("logits_weight")
    similarity_weight: float = _option("similarity_weight")
    ranking_weight: float = _option("ranking_weight")
    margin_weight: float = _option("margin_weight")
    listwise_weight: float = _option("listwise_weight")
    hidden_weight: float = _option("hidden_weight")
    hidden_distance: str = _option("hidden_distance")
    attention_weight: float = _option("attention_weight")
    value_weight: float = _option("value_weight")
    relation_heads: int | None = _option("relation_heads")
    layer_map: dict[int, int] | str | None = field(default=None, metadata=_help("layer_map"))
    teacher_weights: list[float] | None = field(default=None, metadata=_help("teacher_weights"))
    teacher_precision: str = _option("teacher_precision")
    task: str | None = _option("task")

    def __post_init__(self) -> None:
        """Check the fields when the arguments are made, not when training starts."""
        if isinstance(self.layer_map, str):  # from a command line
            self.layer_map = _numbers(self.layer_map)
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.distillation_config()

    def distillation_config(self) -> DistillationTrainingConfig:
        """Return the distillation fields as a config."""
        names = [item.name for item in fields(self)]
        known = [name for name in names if name in DistillationTrainingConfig.model_fields]
        values = {name: getattr(self, name) for name in known}
        return DistillationTrainingConfig.from_dict(values, "DistillationArguments")


def _numbers(text: str) -> dict[int, int]:
    try:
        return {int(student): int(teacher) for student, teacher in json.loads(text).items()}
    except (ValueError, AttributeError, TypeError):
        raise ConfigError(
            f'cannot parse layer_map {text!r}; write JSON such as {{"0": 1, "1": 3}}'
        ) from None
