"""YAML read the way people mean it, and safely."""

from __future__ import annotations

import time

import pytest

from hfcompress.errors import ConfigError
from hfcompress.recipes.yaml import dump_yaml, parse_yaml


def test_numbers_and_words() -> None:
    text = "rate: 8e-5\nhalf: 0.5\nbig: 1E3\nlabels: [no, yes, on]\nflag: true\ncount: 3\nnone: ~"
    assert parse_yaml(text, "r") == {
        "rate": 8e-5, "half": 0.5, "big": 1000.0, "labels": ["no", "yes", "on"],
        "flag": True, "count": 3, "none": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['true']", "no tags"),
        ("a: [1, 2", "cannot parse YAML"),
        ("a: 1\na: 2", "line 2: duplicate key 'a'"),
        ("a: {b: 1, b: 2}", "duplicate key 'b'"),
        ("\tx: 1", "cannot parse YAML"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "r.yaml")
    assert message in str(caught.value)
    assert "r.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_round_trip() -> None:
    data = {"b": [1, 2.5, "x"], "a": {"no": "yes"}}
    assert parse_yaml(dump_yaml(data), "r") == data
    assert list(parse_yaml(dump_yaml(data), "r")) == ["b", "a"]


LAUGHS = "[&a0 [x, x, x, x, x, x, x, x, x, x]" + "".join(
    f", &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a: {LAUGHS}]", "more than 20,000 values"),
        ("a: &x [1]\nb:\n" + "".join(f"  k{place}: *x\n" for place in range(10_000)), "values"),
        ("a: " + "[" * 20_000 + "]" * 20_000, "nested more than 32 levels"),
        ("- " * 20_000, "nested more than 32 levels"),
        ("a: &a [*a]", "refers to what it is a part of"),
        ("a: {<<: &b {c: 1, <<: *b}}", "refers to what it is a part of"),
        ("#" * 200_000, "characters are too many"),
        ("a: " + "1" * 100_000, "cannot parse YAML"),
        ("a: 2020-13-45", "cannot parse YAML"),
        ("? [a, b]\n: 1", "a key must be one word"),
    ],
)
def test_bombs_are_refused_within_two_seconds(text: str, message: str) -> None:
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "r.yaml")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300
    assert time.process_time() - started < 2


def test_long_words_are_read_in_linear_time() -> None:
    started = time.process_time()
    assert parse_yaml("a: " + "1" * 100_000 + "e", "r") == {"a": "1" * 100_000 + "e"}
    assert time.process_time() - started < 2


def test_aliases_are_read() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: *a", "r") == {"a": {"x": 1}, "b": {"x": 1}}
