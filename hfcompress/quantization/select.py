"""Which modules a config leaves out."""

from __future__ import annotations

from torch import nn

from hfcompress.models.architectures import compressible_modules, matching_modules
from hfcompress.quantization.config import QuantizationConfig


def excluded_modules(model: nn.Module, config: QuantizationConfig) -> set[str]:
    """Names that ``exclude`` names, of products, convolutions and tables.

    Raises:
        TargetError: a pattern that matches nothing.
    """
    if not config.exclude:
        return set()
    tables = {n: m for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    return set(matching_modules(compressible_modules(model) | tables, config.exclude))
