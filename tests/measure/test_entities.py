"""Entities and their F1 are those of ``seqeval``, for tags of any scheme and of none."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from hfcompress.measure.entities import (
    entity_counts,
    entity_f1,
    entity_f1_macro,
    entity_precision,
    entity_recall,
    f1_of_types,
    find_entities,
    tag_set,
)

SCHEMES = {
    "IOB": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    "IOE": ["O", "E-PER", "I-PER", "E-LOC", "I-LOC"],
    "IOBES": ["O", *(f"{p}-{t}" for t in ("PER", "LOC-2", "MISC") for p in "BIES")],
    "lone prefixes": ["O", "B", "I"],
}


def random_sentences(tags: int, seed: int) -> tuple[Any, Any, Any]:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, 12, 40)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    true, found = (generator.integers(0, tags, starts[-1]) for _ in range(2))
    found = np.where(generator.random(starts[-1]) < 0.6, true, found)
    return true, found, starts


def as_names(tags: Any, starts: Any, names: list[str]) -> list[list[str]]:
    return [[names[tag] for tag in tags[first:end]] for first, end in pairwise(starts)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_seqeval(scheme: str, seed: int) -> None:
    seqeval = pytest.importorskip("seqeval.metrics")
    names = SCHEMES[scheme]
    true, found, starts = random_sentences(len(names), seed)
    known = tag_set(names)
    assert known is not None
    counts = entity_counts(found, true, starts, known)
    whole = counts.sum(0)
    texts = as_names(true, starts, names), as_names(found, starts, names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert entity_f1(whole) == pytest.approx(seqeval.f1_score(*texts))
        assert entity_precision(whole) == pytest.approx(seqeval.precision_score(*texts))
        assert entity_recall(whole) == pytest.approx(seqeval.recall_score(*texts))
        assert entity_f1_macro(whole) == pytest.approx(seqeval.f1_score(*texts, average="macro"))
        by_type = seqeval.f1_score(*texts, average=None)
    np.testing.assert_allclose(f1_of_types(whole)[whole[:, 1:].sum(1) > 0], by_type)
    assert counts.shape == (40, len(known.type_names), 3)


def test_bilou_is_iobes_under_other_names() -> None:
    names = SCHEMES["IOBES"]
    renamed = [name.replace("E-", "L-").replace("S-", "U-") for name in names]
    tags = random_sentences(len(names), 5)[0]
    starts = np.array([0, len(tags)])
    results = [find_entities(tags, starts, tag_set(given)) for given in (names, renamed)]  # type: ignore[arg-type]
    for field in ("types", "first", "last"):
        np.testing.assert_array_equal(getattr(results[0], field), getattr(results[1], field))


def test_types_without_prefix_are_runs_of_one_type() -> None:
    known = tag_set(["O", "PER", "LOC"])
    assert known is not None
    found = find_entities(np.array([1, 1, 0, 2, 1]), np.array([0, 5]), known)
    kinds = [known.type_names[kind] for kind in found.types]
    assert list(zip(kinds, found.first, found.last, strict=True)) == [
        ("PER", 0, 1), ("LOC", 3, 3), ("PER", 4, 4),
    ]  # fmt: skip


def test_an_entity_ends_with_its_sentence() -> None:
    known = tag_set(SCHEMES["IOB"])
    assert known is not None
    tags = np.array([0, 1, 2, 2])
    together = find_entities(tags, np.array([0, 4]), known)
    apart = find_entities(tags, np.array([0, 2, 4]), known)
    assert list(zip(together.first, together.last, strict=True)) == [(1, 3)]
    assert list(zip(apart.first, apart.last, strict=True)) == [(1, 1), (2, 3)]


def test_parts_of_speech_are_no_entities() -> None:
    assert tag_set(["NOUN", "VERB", "DET"]) is None
    assert tag_set(["O"]) is None
