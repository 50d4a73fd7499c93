"""What a step is called in a recipe, and the config class that checks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfcompress.config import Config, nearest
from hfcompress.errors import ConfigError
from hfcompress.pruning.config import PruningConfig
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.recipe.aware_config import QuantizationAwareConfig
from hfcompress.recipe.distill_config import DistillConfig
from hfcompress.recipe.finetune_config import FinetuneConfig
from hfcompress.recipe.shrink_config import ShrinkStepConfig
from hfcompress.recipe.training_config import (
    GradualConfig,
    LotteryStepConfig,
    ProgressiveStepConfig,
    RecoverConfig,
)
from hfcompress.vocabulary.config import VocabularyConfig

# The function that carries a config out is in steps.py; a test holds the two together.
STEP_CONFIGS: dict[str, type[Config]] = {
    "finetune": FinetuneConfig,
    "prune": PruningConfig,
    "qat": QuantizationAwareConfig,
    "quantize": QuantizationConfig,
    "shrink": ShrinkStepConfig,
    "recover": RecoverConfig,
    "gradual": GradualConfig,
    "lottery": LotteryStepConfig,
    "progressive": ProgressiveStepConfig,
    "distill": DistillConfig,
    "vocabulary": VocabularyConfig,
}


@dataclass(frozen=True)
class Step:
    """One step: its name in YAML and its checked config."""

    name: str
    config: Config

    def plain(self) -> dict[str, Any]:
        """As it stands in a recipe, every field spelt out."""
        return {self.name: self.config.plain()}


def parse_steps(steps: Sequence[Any]) -> tuple[Step, ...]:
    """Check a list of ``{name: fields}`` mappings.

    Raises:
        ConfigError: an unknown step or field, with its place in the list.
    """
    check_names(steps)
    parsed = []
    for index, item in enumerate(steps):
        ((name, fields),) = item.items()
        config = STEP_CONFIGS[name].parse(fields or {}, f"steps[{index}].{name}")
        parsed.append(Step(name, config))
        if isinstance(config, QuantizationConfig) and index < len(steps) - 1:
            raise ConfigError(
                f"steps[{index}].quantize leaves no torch model for the steps after it; "
                f"write it last"
            )
    return tuple(parsed)


def check_names(steps: Sequence[Any]) -> None:
    """Refuse what is no list of ``{name: fields}`` mappings with known names.

    Raises:
        ConfigError: an unknown step, with its place in the list.
    """
    for index, item in enumerate(steps):
        if not isinstance(item, Mapping) or len(item) != 1:
            raise ConfigError(
                f"steps[{index}] must be one step and its fields, such as "
                f"'prune: {{sparsity: 0.5}}', not {item!r}"
            )
        name = next(iter(item))
        if name not in STEP_CONFIGS:
            hint = nearest(str(name), list(STEP_CONFIGS))
            raise ConfigError(f"steps[{index}]: there is no step {name!r}{hint}")
