"""Optional packages: imported where they are used, asked for by pip command where missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from hfcompress.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: what to import, dots allowed (``"onnxruntime.quantization"``).
        extra: the extra of hfcompress that brings it (``"onnx"``).

    Raises:
        MissingExtraError: the module is not installed; the message holds the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name.split(".")[0]):
            raise  # the module is there, something that it imports is not
        raise MissingExtraError(
            f"{module.split('.')[0]} is not installed; write: pip install 'hfcompress[{extra}]'"
        ) from None
