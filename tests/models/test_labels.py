"""Labels of data and models: the same name in any spelling, in the model's order."""

from __future__ import annotations

import pytest

from hfcompress.errors import DataError
from hfcompress.models.labels import align_labels, fold_label, label_name

UNNAMED = ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("golden_retriever", "Golden Retriever"),
        ("not-spam", "NotSpam"),
        ("1.0", "1"),
        ("don't", "dont"),
        ("STRASSE", "straße"),
    ],
)
def test_spellings_of_a_name_are_equal(one: str, other: str) -> None:
    assert fold_label(one) == fold_label(other)


@pytest.mark.parametrize(
    ("one", "other"), [("-1", "1"), ("C", "C#"), ("C", "C++"), ("1.5", "15.0"), ("+", "-")]
)
def test_names_that_mean_another_thing_differ(one: str, other: str) -> None:
    assert fold_label(one) != fold_label(other)


def test_values_as_names() -> None:
    values = [0, 1.0, "2.0", " a ", True, -1]
    assert [label_name(value) for value in values] == ["0", "1", "2", "a", "True", "-1"]


@pytest.mark.parametrize(
    ("labels", "own", "places"),
    [
        (["negative", "positive"], ["POSITIVE", "NEGATIVE"], (1, 0)),
        (["a", "c"], ["a", "b", "c"], (0, 2)),
        (["0", "1"], ["NEGATIVE", "POSITIVE"], (0, 1)),
        (["False", "True"], ["no", "yes"], (0, 1)),
        (["0", "2"], UNNAMED, (0, 2)),
        (["-1", "0", "1"], UNNAMED, (0, 1, 2)),
        (["1", "2", "3"], UNNAMED, (0, 1, 2)),
        (["1", "3"], UNNAMED, (0, 2)),
        (["1", "2", "3"], ["3 stars", "2 stars", "1 star"], (2, 1, 0)),
        (["1", "0"], ["LABEL_0", "LABEL_1"], (0, 1)),  # the order that data.labels states
        (["b", "a", "c"], UNNAMED, (0, 1, 2)),
    ],
)
def test_labels_find_their_class(labels: list[str], own: list[str], places: tuple[int]) -> None:
    found = align_labels(labels, own)
    assert found is not None
    assert found.places == places
    assert [found.names[place] for place in places] == labels


@pytest.mark.parametrize(
    ("labels", "own"),
    [
        (["negative", "positive"], ["pos", "neg"]),
        (["a", "b"], UNNAMED),
        (["-1", "1"], UNNAMED),
        (["0", "5"], UNNAMED),
        (["a", "b", "c"], ["a", "b"]),
    ],
)
def test_labels_that_do_not_correspond(labels: list[str], own: list[str]) -> None:
    assert align_labels(labels, own) is None


def test_numbers_that_may_count_from_0_or_1_are_refused() -> None:
    with pytest.raises(DataError, match=r"write data\.labels: \[0, 1, 2\] or \[1, 2, 3\]"):
        align_labels(["1", "2"], UNNAMED)


def test_a_head_of_another_size_is_new_where_a_step_trains() -> None:
    assert align_labels(["1", "2"], UNNAMED, new_head=True) is None
    assert align_labels(["a", "c"], ["a", "b", "c"], new_head=True) is None


def test_what_was_assumed_is_said() -> None:
    unnamed, counted, named = (
        align_labels(labels, UNNAMED) for labels in (["x", "y", "z"], ["1", "2", "3"], ["0", "1"])
    )
    assert unnamed is not None
    assert counted is not None
    assert named is not None
    assert "its outputs are read in the data's order, 0 as x, 1 as y" in str(unnamed.note)
    assert "1 as LABEL_0, 2 as LABEL_1" in str(counted.note)
    assert named.note is None
    assert named.names == ("0", "1", "2")
