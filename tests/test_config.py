"""One sentence for every mistake in a config."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from pydantic import Field

from hfcompress.config import Config, Names, nearest
from hfcompress.errors import ConfigError


class Inner(Config):
    share: float = Field(0.5, ge=0, lt=1)
    names: Names | None = None


class Outer(Config):
    inner: Inner = Inner()
    count: int = 1
    needed: str


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"needed": "x", "cont": 1}, "Outer has no field 'cont'; did you mean 'count'?"),
        ({"needed": "x", "[bold]x": 1}, "Outer has no field '[bold]x'; known are: "),
        ({"needed": "x", "str": 1}, "Outer has no field 'str'; known are: "),
        (
            {"needed": "x", "inner": {"shore": 1}},
            "Outer.inner has no field 'shore'; did you mean 's",
        ),
        ({}, "Outer needs the field 'needed', which is missing"),
        ({"needed": "x", "inner": {"share": 1.0}}, "Outer.inner.share should be less than 1, not"),
        ({"needed": "x", "count": "3"}, "Outer.count should be a valid integer, not '3'"),
        ({"needed": "x", "count": True}, "Outer.count should be a valid integer, not True"),
        ({"needed": "x", "inner": {"names": "a"}}, "Outer.inner.names should be a list, not 'a'"),
        ({"needed": "x", "inner": 3}, "Outer.inner should be a mapping or instance of Inner"),
    ],
)
def test_mistakes_get_one_sentence(data: dict[str, Any], message: str) -> None:
    for direct in (True, False):
        with pytest.raises(ConfigError) as caught:
            _ = Outer(**data) if direct else Outer.from_dict(data, "Outer")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_lists_become_tuples_and_back() -> None:
    config = Inner.from_dict({"names": ["a", "b"]})
    assert config.names == ("a", "b")
    assert config.to_dict() == {"share": 0.5, "names": ["a", "b"]}
    assert Inner.from_dict(config.to_dict()) == config


def test_changed_checks_again() -> None:
    assert Inner().replace(share=0.25).share == 0.25
    with pytest.raises(ConfigError):
        Inner().replace(share=2.0)


def test_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        Inner().share = 0.1  # type: ignore[misc]


def test_not_a_mapping() -> None:
    with pytest.raises(ConfigError, match="must be a mapping"):
        Inner.from_dict([1], "steps")


def test_former_names_of_methods_give_the_same() -> None:
    given = {"needed": "x", "inner": {"share": 0.25}}
    config = Outer.parse(given)
    assert config == Outer.from_dict(given) != Outer(needed="x")
    assert config.plain() == config.to_dict()
    assert config.changed(count=3) == config.replace(count=3) != config
    with pytest.raises(ConfigError, match="count"):
        config.changed(count="three")


def test_nearest() -> None:
    assert nearest("sparsty", ["sparsity", "scope"]) == "; did you mean 'sparsity'?"
    assert nearest("zzz", ["b", "a"]) == "; known are: a, b"
    assert nearest("zzz", []) == ""


def test_a_changed_default_keeps_the_hash_of_what_was_asked_before() -> None:
    class Before(Config):
        weight: float = 0.0
        other: int = 1

    class After(Config):
        former_defaults: ClassVar = {"weight": 0.0}
        weight: float = 0.8
        other: int = 1

    class Outer(Config):
        inner: After = Field(default_factory=After)

    cases: list[dict[str, Any]] = [{"weight": 0.0}, {"weight": 0.8}, {"weight": 0.3, "other": 2}]
    for fields in cases:
        assert After(**fields).non_default_fields() == Before(**fields).non_default_fields()
    assert After().non_default_fields() == {"weight": 0.8}
    assert Outer().non_default_fields() == {"inner": {"weight": 0.8}}
    assert Outer(inner=After(weight=0.0)).non_default_fields() == {}
