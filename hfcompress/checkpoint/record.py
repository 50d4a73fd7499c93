"""The record in a checkpoint's ``config.json`` of modules that the model's config cannot express.

::

    "quantization_config": {
      "quant_method": "hfcompress (...)",   looked up by transformers, quoted if unknown
      "model": "BertForSequenceClassification",
      "base": "bert",                       where the base model lies in that class
      "modules": {"bert.encoder.layer.0.attention.self.query": {"weight": [24, 32], "bias": [24]}},
      "packed": {"bert.encoder.layer.0.output.dense": 1638}     non-zeros of a packed weight
      "int8": ["bert.pooler.dense"]                              Linears whose weight is int8
      "digests": {"model.safetensors": "9f86d081...", "config.json": "60303ae2..."}
    }

Plain data: `from_dict` checks every field, and nothing in it is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from typing_extensions import TypeIs

from hfcompress.errors import ModelError

RECORD = "quantization_config"
"""The field of ``config.json``."""

METHOD = "hfcompress (write: pip install hfcompress, and: import hfcompress)"
"""The ``quant_method``. transformers quotes it to people who have not imported hfcompress."""

Shape = tuple[int, ...]
_FIELDS = ("model", "base", "modules", "packed", "int8", "digests")


@dataclass(frozen=True)
class Record:
    """The modules that differ from what the config alone would build.

    Attributes:
        model: class of the model that was recorded; its head's modules must all be there again.
        base: name of the base model inside it (``"bert"``), or ``""``.
        modules: module -> parameter or buffer -> shape; None for a parameter that is not there.
        packed: module -> non-zero values of its weight, which is stored as bitmask and values.
        int8: Linears whose weight is stored, and multiplied, as int8.
        digests: of the checkpoint's files, see `digests`; empty of a model in memory.
    """

    model: str = ""
    base: str = ""
    modules: dict[str, dict[str, Shape | None]] = field(default_factory=dict)
    packed: dict[str, int] = field(default_factory=dict)
    int8: tuple[str, ...] = ()
    digests: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.modules or self.packed or self.int8)

    def to_dict(self) -> dict[str, object]:
        """The record as stored in ``config.json``."""
        modules = {
            name: {key: None if shape is None else list(shape) for key, shape in shapes.items()}
            for name, shapes in self.modules.items()
        }
        data = {"modules": modules, "packed": dict(self.packed), "int8": list(self.int8)}
        data["digests"] = dict(self.digests)
        head = {"quant_method": METHOD, "model": self.model, "base": self.base}
        return {**head, **{key: value for key, value in data.items() if value}}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Record:
        """Read and check the record in a ``config.json``.

        Raises:
            ModelError: anything that `to_dict` would not have written.
        """
        unknown = sorted(set(data) - {*_FIELDS, "quant_method"})
        if unknown:
            raise _damaged(f"has the unknown field {unknown[0]!r}")
        model, base = data.get("model", ""), data.get("base", "")
        if not isinstance(model, str) or not isinstance(base, str):
            raise _damaged("has a model or base that is not text")
        modules = {
            name: _mapping(shapes, f"modules.{name}")
            for name, shapes in _mapping(data.get("modules", {}), "modules").items()
        }
        packed = _mapping(data.get("packed", {}), "packed")
        int8 = _names(data.get("int8", ()), "int8")
        digests = _mapping(data.get("digests", {}), "digests")
        for name in int8:
            if name in packed:
                raise _damaged(f"names {name!r} under int8 and under packed")
        return cls(
            model=model,
            base=base,
            modules={
                name: {key: _shape(name, key, shape) for key, shape in shapes.items()}
                for name, shapes in modules.items()
            },
            packed={name: _count(name, number) for name, number in packed.items()},
            int8=int8,
            digests={name: str(digest) for name, digest in digests.items()},
        )


def _mapping(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _damaged(f"has {value!r} under {where!r} instead of a mapping of names")
    return dict(value)


def _names(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise _damaged(f"has {value!r} under {where!r} instead of a list of names")
    return tuple(value)


def _shape(module: str, key: str, shape: object) -> Shape | None:
    if shape is None:
        return None
    if not isinstance(shape, (list, tuple)) or not all(_is_count(size) for size in shape):
        raise _damaged(f"gives {module}.{key} the shape {shape!r} instead of a list of sizes")
    return tuple(shape)


def _count(module: str, number: object) -> int:
    if not _is_count(number):
        raise _damaged(f"has {number!r} for {module} instead of a whole number from 0")
    return number


def _is_count(value: object) -> TypeIs[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _damaged(what: str) -> ModelError:
    return ModelError(
        f"config.json: the quantization_config that hfcompress wrote {what}; save the model again"
    )
