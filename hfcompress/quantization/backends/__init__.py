"""One module for each engine; `import_backend` gives it by name."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol, cast

from torch import nn

from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.engine import Arrays, Engine
from hfcompress.quantization.inputs import Classifier


class Backend(Protocol):
    """The functions that each module of this package has."""

    def quantize_model(
        self,
        model: Classifier,
        config: QuantizationConfig,
        excluded: Collection[str],
        batches: Sequence[Arrays],
    ) -> tuple[Engine, set[str]]:
        """Return the engine with the quantized model, and the names of the quantized modules."""
        ...

    def load_engine(self, folder: Path, threads: int | None = None) -> Engine:
        """Return the engine of a saved folder."""
        ...

    def why_not(self, module: nn.Module, config: QuantizationConfig) -> str:
        """Return the reason why a module of this class stays in floating point."""
        ...


def import_backend(name: str) -> Backend:
    """Import the module of a backend; ``name`` is one of ``QuantizationConfig.backend``."""
    return cast(Backend, importlib.import_module(f"{__name__}.{name}"))
