"""Shrunk tiny models, made by hand."""

from __future__ import annotations

from typing import Any

from hfcompress.checkpoint.save import record_shapes
from hfcompress.models.sublayers import sublayers
from hfcompress.models.surgery import keep_layers, keep_units
from tests.families import IMAGES, tiny


def uneven(model_type: str) -> Any:
    """Every layer with other widths: 4, 3 and 2 heads and 40, 32 and 24 neurons; recorded."""
    model = tiny(model_type)
    for place, sublayer in enumerate(sublayers(model)):
        layer = place // 2
        units = 4 - layer if sublayer.kind == "heads" else 40 - 8 * layer
        keep_units(model, sublayer, list(range(units)))
    record_shapes(model)
    return model


def without_a_layer(model_type: str) -> Any:
    """As `uneven`, the middle layer removed."""
    model = uneven(model_type)
    keep_layers(model, [0, 2])
    record_shapes(model)
    return model


def task(model_type: str) -> str:
    """The Auto class of `tests.families.tiny`."""
    kind = "Image" if model_type in IMAGES else "Sequence"
    return f"AutoModelFor{kind}Classification"
