"""YAML as recipes use it: safe, bounded, numbers and words read the way people mean them."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, TypeVar

import yaml

from hfcompress.config import Config
from hfcompress.errors import ConfigError, first_line

ConfigType = TypeVar("ConfigType", bound=Config)
_NUMBER_STARTS = list("-+.0123456789")
# A recipe has some dozens of lines. Beyond these bounds a small file takes minutes or gigabytes.
MAX_BYTES = 1 << 17
_MAX_DEPTH = 32
_MAX_NODES = 20_000


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` with YAML 1.2's booleans and floats, refusing doubled keys."""


# YAML 1.1 reads `no` as False and `8e-5` as text; recipes hold label names and learning rates.
_Loader.yaml_implicit_resolvers = {
    start: [(tag, regex) for tag, regex in rules if tag not in {"tag:yaml.org,2002:bool"}]
    for start, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*(\.\d*)?|\.\d+)[eE][-+]?\d+"),
    _NUMBER_STARTS,
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[object, object]:
    seen: set[object] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise ConfigError(f"line {key_node.start_mark.line + 1}: a key must be one word")
        if key in seen:
            raise ConfigError(f"line {key_node.start_mark.line + 1}: duplicate key {key!r}")
        seen.add(key)
    loader.flatten_mapping(node)
    return dict(loader.construct_mapping(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str, name: str) -> Any:
    """Read YAML into plain data.

    Args:
        text: the YAML.
        name: what it is called in messages.

    Raises:
        ConfigError: no YAML, a doubled key, a tag that would build a Python object, or more
            bytes, levels or values than a recipe may have.
    """
    try:
        _check_bounds(text)
        return yaml.load(text, Loader=_Loader)  # nosec B506 # a SafeLoader, builds plain data only
    except yaml.constructor.ConstructorError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(
            f"{name}, line {line}: {error.problem}; recipes hold plain values only, no tags"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", "cannot be read")
        raise ConfigError(f"{name}{place}: cannot parse YAML: {problem}") from None
    except ValueError as error:  # a date or a number that Python refuses
        raise ConfigError(f"{name}: cannot parse YAML: {first_line(error)}") from None
    except ConfigError as error:
        raise ConfigError(f"{name}, {error}") from None


def _check_bounds(text: str) -> None:
    """Refuse text that is too long, too deep, or unfolds (by aliases) to too many values.

    Counts the parser's events before anything is built: each alias counts as much as its anchor.

    Raises:
        ConfigError: a bound is exceeded.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(
            f"line 1: {len(text):,} characters are too many; a recipe has {MAX_BYTES:,} at most"
        )
    anchors: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and nodes counted before it began
    nodes = 0
    for event in _events(text):
        problem = None
        if isinstance(event, yaml.AliasEvent):
            nodes += anchors.get(str(event.anchor), 1)
            if any(event.anchor == anchor for anchor, _ in open_nodes):
                problem = f"the alias *{event.anchor} refers to what it is a part of"
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            anchors.update({anchor: nodes - before} if anchor else {})
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, nodes - 1))
            elif event.anchor:
                anchors[event.anchor] = 1
        if nodes > _MAX_NODES:
            problem = f"more than {_MAX_NODES:,} values, aliases unfolded; write fewer"
        elif len(open_nodes) > _MAX_DEPTH:
            problem = f"nested more than {_MAX_DEPTH} levels deep; write it flatter"
        if problem:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise ConfigError(f"line {line}: {problem}")


def _events(text: str) -> Iterator[yaml.Event]:
    """The parser's events up to the first mistake, which `yaml.load` reports in its own words."""
    try:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return


def config_of_options(config: type[ConfigType], given: Mapping[str, str | None]) -> ConfigType:
    """A config from what was written behind the options of the command line.

    Args:
        config: its fields are the options; a list is written with commas (``1,32``).
        given: text by field; None where the option was left out.

    Raises:
        ConfigError: as when building the config.
    """
    return config.from_dict(fields_of_options(config, given))


def fields_of_options(config: type[Config], given: Mapping[str, object]) -> dict[str, object]:
    """Return what was written behind the options of a command line as plain data.

    Args:
        config: its fields are the options; a list is written with or without its brackets.
        given: text by field; None where the option was left out.

    Raises:
        ConfigError: text that is not YAML.
    """
    data: dict[str, object] = {}
    for name, text in given.items():
        if isinstance(text, str):
            listed = "tuple" in str(config.model_fields[name].annotation)
            bare = listed and not text.lstrip().startswith(("[", "{"))
            data[name] = parse_yaml(f"[{text}]" if bare else text, f"--{name.replace('_', '-')}")
    return data


def dump_yaml(data: object) -> str:
    """Plain data as YAML, keys in the order given."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
