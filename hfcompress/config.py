"""``Config``: one class per thing that can be configured, for Python, YAML and command line.

A config is frozen, takes keywords only, refuses unknown keys and wrong types, and answers a
mistake with one sentence (`ConfigError`) that names the field and the nearest right one.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from hfcompress.errors import ConfigError

# YAML knows lists, configs hold tuples: the one place where a type is converted.
Names = Annotated[tuple[str, ...], Field(strict=False)]
Values = Annotated[tuple[str | int, ...], Field(strict=False)]


def option_metadata(config: type[BaseModel], name: str) -> dict[str, Any]:
    """The help of a dataclass field that stands for a config's field."""
    return {"help": config.model_fields[name].description}


def option(config: type[BaseModel], name: str) -> Any:
    """A dataclass field (of training arguments) with the default and help of a config's field."""
    return field(default=config.model_fields[name].default, metadata=option_metadata(config, name))


_MAX_SHOWN = 200  # characters of a wrong value in a sentence


class Config(BaseModel):
    """Base of every config class.

    Fields are declared once, with ``Field(description=...)`` and their range; the same class is
    the argument of the Python call and the schema of the recipe's YAML.

    Raises:
        ConfigError: an unknown key, a missing key, a wrong type or a value out of range.
    """

    former_defaults: ClassVar[Mapping[str, object]] = {}
    """Former defaults of fields whose default has changed: hashes of old results stay valid."""

    former_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Former names of fields -> where they are now (dotted; several where another field decides).

    The class itself reads them; grid fields and ``--set`` may name them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    if not TYPE_CHECKING:  # type checkers see the fields, not this catch-all

        def __init__(self, /, **data: Any) -> None:
            try:
                super().__init__(**data)
            except ValidationError as error:
                raise ConfigError(_sentence(error, type(self), "")) from None

        # Nested configs are validated by pydantic itself, so that a mistake deep inside is
        # reported with its whole path; only the outermost call goes through __init__.
        __init__.__pydantic_base_init__ = True

    @classmethod
    def from_dict(cls, data: object, where: str = "") -> Self:
        """Check plain data (as YAML gives it) and build the config.

        Args:
            data: a mapping of field names to values.
            where: the path of this part in the recipe, for messages (``"steps[0].prune"``).

        Raises:
            ConfigError: anything that does not fit, as one sentence.
        """
        if not isinstance(data, Mapping):
            place = where or cls.__name__
            raise ConfigError(
                f"{place} must be a mapping of fields to values, not {shown(data)}; "
                f"its fields are: {', '.join(cls.model_fields)}"
            )
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise ConfigError(_sentence(error, cls, where)) from None

    def to_dict(self) -> dict[str, Any]:
        """The config as plain data that YAML and JSON can hold, every field spelt out."""
        plain: dict[str, Any] = _listed(self.model_dump())
        return plain

    def non_default_fields(self) -> dict[str, Any]:
        """The fields that are not at their defaults, for content hashes.

        A new option with a default leaves old results valid. A field whose default has changed
        (see ``former_defaults``) is left out where it has its former default.
        """
        return _hashed_fields(self)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked anew.

        Raises:
            ConfigError: as when building the config.
        """
        return type(self).from_dict(
            {**{name: getattr(self, name) for name in self.__class__.model_fields}, **changes}
        )

    # Former names, kept for one release.

    @classmethod
    def parse(cls, data: object, where: str = "") -> Self:
        """As `from_dict`."""
        return cls.from_dict(data, where)

    def plain(self) -> dict[str, Any]:
        """As `to_dict`."""
        return self.to_dict()

    def changed(self, **changes: Any) -> Self:
        """As `replace`."""
        return self.replace(**changes)


class StepConfig(Config):
    """Base of the configs that a recipe's steps take.

    What a step does is stated on its config class; ``steps/registry.py`` maps the class to the
    function that carries it out.
    """

    step_name: ClassVar[str]
    """What the step is called in a recipe."""
    compresses: ClassVar[bool] = False
    """The model before the first such step is the dense one, which others are compared with."""
    trains: ClassVar[bool] = False
    """It runs long: its result is kept by content hash."""
    calibrates: ClassVar[bool] = False
    """It may take minutes: its result is kept where it did and a later step trains."""
    shrinks: ClassVar[bool] = False
    """It makes matrices smaller."""

    @property
    def replaces_model(self) -> bool:
        """Whether the step leaves another model than it was given."""
        return False

    @property
    def needs_rows(self) -> bool:
        """Whether the step reads training rows."""
        return self.trains


def _hashed_fields(config: Config, changed_only: bool = False) -> dict[str, Any]:
    """Fields that differ from the defaults that hashes know.

    Args:
        config: whose fields.
        changed_only: only fields that have a default which hashes do not know yet.
    """
    found: dict[str, Any] = {}
    for name, default in _defaults(type(config)).items():
        value = getattr(config, name)
        if name in config.former_defaults:
            if value != config.former_defaults[name] and (value == default or not changed_only):
                found[name] = _hashed(value)
        elif value == default:
            inner = _hashed_fields(value, changed_only=True) if isinstance(value, Config) else {}
            if inner:
                found[name] = inner
        elif not changed_only and not _equals_former(value, default):
            found[name] = _hashed(value)
    return found


@functools.cache
def _defaults(config: type[Config]) -> dict[str, Any]:
    """The defaults of a class's fields; a grid of 10,000 points asks for them as often."""
    fields = config.model_fields.items()
    return {name: info.get_default(call_default_factory=True) for name, info in fields}


def _equals_former(value: object, default: object) -> bool:
    """Whether a nested config is what the default was before its fields' defaults changed."""
    if not isinstance(value, Config) or type(value) is not type(default):
        return False
    assert isinstance(default, Config)
    changed = _hashed_fields(default, changed_only=True)
    if not changed:
        return False
    kept = {key: item for key, item in _hashed_fields(default).items() if key not in changed}
    return value.non_default_fields() == kept


def _hashed(value: Any) -> Any:
    """A field's value as plain data, nested configs by the fields that hashes know."""
    if isinstance(value, Config):
        return value.non_default_fields()
    if isinstance(value, dict):
        return {key: _hashed(item) for key, item in value.items()}
    return [_hashed(item) for item in value] if isinstance(value, (tuple, list)) else value


def _listed(data: Any) -> Any:
    """Tuples as lists, all the way down; pydantic's JSON mode would turn number keys to text."""
    if isinstance(data, dict):
        return {key: _listed(value) for key, value in data.items()}
    return [_listed(item) for item in data] if isinstance(data, (tuple, list)) else data


def shown(value: object) -> str:
    """A value as a sentence shows it: its ``repr``, long ones cut in the middle."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 23]} ... {text[-18:]}"


def nearest(name: str, known: object) -> str:
    """``"; did you mean 'x'?"`` with the nearest known name, or the list of all of them."""
    names = [str(item) for item in known] if isinstance(known, (list, tuple, set, dict)) else []
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are: {', '.join(sorted(names))}" if names else ""


def nearest_of_all(name: str, known: list[str]) -> str:
    """As `nearest`, with the list of all known names behind the nearest one."""
    hint = nearest(name, known)
    return f"{hint} Known are: {', '.join(sorted(known))}" if hint.endswith("?") else hint


def _sentence(error: ValidationError, cls: type[BaseModel], where: str) -> str:
    """The first problem of a validation error, as one sentence.

    An unknown key goes first: it is often the missing one, misspelt.
    """
    problems = error.errors(include_url=False)
    details = next((item for item in problems if item["type"] == "extra_forbidden"), problems[0])
    unknown = details["type"] == "extra_forbidden"  # its last part is the user's, whatever it is
    parts = details["loc"][:-1] if unknown else details["loc"]
    location = tuple(part for part in parts if not _is_union_tag(part))
    location += details["loc"][-1:] if unknown else ()
    return _describe(details, location, cls, where or cls.__name__)


def _is_union_tag(part: object) -> bool:
    # pydantic adds the tried union member to the path ("tuple[str,...]", "float"); not a field.
    return isinstance(part, str) and (
        "[" in part or part in {"str", "int", "float", "bool", "dict"}
    )


def _describe(
    details: ErrorDetails, location: tuple[int | str, ...], cls: type[BaseModel], where: str
) -> str:
    kind, value = details["type"], details.get("input")
    field = _path(where, location)
    if kind == "extra_forbidden":
        owner = owner_of(cls, location[:-1])
        hint = nearest(str(location[-1]), list(owner.model_fields))
        return f"{_path(where, location[:-1])} has no field {str(location[-1])!r}{hint}"
    if kind == "missing":
        return (
            f"{_path(where, location[:-1])} needs the field {str(location[-1])!r}, which is missing"
        )
    if kind == "value_error":
        message = str(details["msg"]).removeprefix("Value error, ")
        return f"{field}: {message}" if location else f"{where}: {message}"
    message = str(details["msg"]).removeprefix("Input ")
    if kind == "literal_error" and isinstance(value, str):
        choices = re.findall("'(.*?)'", str(details["ctx"]["expected"]))
        hint = nearest(value, choices)
        return f"{field} {message}, not {shown(value)}{hint if hint.endswith('?') else ''}"
    message = message.replace("valid tuple", "list").replace("valid dictionary", "mapping")
    return f"{field} {message}, not {shown(value)}"


def _path(where: str, location: tuple[int | str, ...]) -> str:
    path = where
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def owner_of(cls: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The config class that a path inside ``cls`` ends in."""
    for part in location:
        field = cls.model_fields.get(str(part))
        if field is None:
            continue
        options = (field.annotation, *get_args(field.annotation))
        inner = [
            option
            for option in options
            if isinstance(option, type) and issubclass(option, BaseModel)
        ]
        cls = inner[0] if inner else cls
    return cls
