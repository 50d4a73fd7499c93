"""YAML read the way people mean it, and safely."""

from __future__ import annotations

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
