"""Maps from student layers to teacher layers (standard library only)."""

from __future__ import annotations

from collections.abc import Mapping

from hfcompress.errors import ConfigError


def uniform_layer_map(student_layers: int, teacher_layers: int) -> dict[int, int]:
    """Return evenly spaced teacher layers, the last one for the last student layer.

    Layers count from 0: 3 student layers map to layers 1, 3 and 5 of 6. In a student with more
    layers than its teacher, several layers map to the same one.

    Args:
        student_layers: at least 1.
        teacher_layers: at least 1.
    """
    return {
        layer: max(0, -(-(layer + 1) * teacher_layers // student_layers) - 1)
        for layer in range(student_layers)
    }


def check_layer_map(
    layer_map: Mapping[int, int], student_layers: int, teacher_layers: int
) -> dict[int, int]:
    """Return a given layer map in order, after checking its layers.

    Raises:
        ConfigError: a layer out of range, or an empty map.
    """
    if not layer_map:
        raise ConfigError("layer_map is empty; leave it out for evenly spaced layers")
    for student, teacher in layer_map.items():
        for who, layer, count in (
            ("student", student, student_layers),
            ("teacher", teacher, teacher_layers),
        ):
            if not 0 <= layer < count:
                raise ConfigError(
                    f"layer_map {{{student}: {teacher}}} is out of range: the {who} has {count} "
                    f"layers, 0 to {count - 1}"
                )
    return dict(sorted(layer_map.items()))
