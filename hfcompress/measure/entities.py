"""Entities in tagged sentences, and their precision, recall and F1 as ``seqeval`` has them.

Tags are read leniently, as conlleval and ``seqeval`` (mode None) read them: any of IOB1, IOB2, IOE,
IOBES and BILOU, and tags that do not follow their scheme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Counts = NDArray[np.float64]
_OUTSIDE = "O"
_PREFIXES = "OBIES"
# BILOU's names of the last word and of a lone one.
_SYNONYMS: Mapping[str, str] = MappingProxyType({"L": "E", "U": "S"})


@dataclass(frozen=True)
class TagSet:
    """What each tag says.

    Attributes:
        names: of the tags, by number.
        prefixes: place in ``OBIES`` of each tag.
        types: type of entity of each tag; -1 outside of entities.
        type_names: names of the types, sorted.
    """

    names: tuple[str, ...]
    prefixes: Integers
    types: Integers
    type_names: tuple[str, ...]


def tag_set(names: Sequence[str]) -> TagSet | None:
    """Return what tags say of entities; None for tags that are not of entities (parts of speech).

    Tags without a prefix beside ``O`` are types: neighbours of one type are one entity.
    """
    parts = [_split(name) for name in names]
    inside = [part for name, part in zip(names, parts, strict=True) if name != _OUTSIDE]
    if not inside or (None in inside and _OUTSIDE not in names):
        return None
    if None in inside:  # types alone
        parts = [_split(name) or ("I", name) for name in names]
    known = [part or (_OUTSIDE, "") for part in parts]
    types = sorted({kind for prefix, kind in known if prefix != _OUTSIDE})
    places = {kind: number for number, kind in enumerate(types)}
    return TagSet(
        tuple(names),
        np.array([_PREFIXES.index(prefix) for prefix, _ in known]),
        np.array([-1 if prefix == _OUTSIDE else places[kind] for prefix, kind in known]),
        tuple(types),
    )


def _split(name: str) -> tuple[str, str] | None:
    """Return prefix and type; None for a name without prefix."""
    if name == _OUTSIDE:
        return _OUTSIDE, ""
    prefix, _, kind = name.partition("-")
    prefix = _SYNONYMS.get(prefix, prefix)
    return (prefix, kind or "_") if prefix in tuple("BIES") else None


@dataclass(frozen=True)
class Entities:
    """Entities of some sentences: their type, and the places of their first and last word."""

    types: Integers
    first: Integers
    last: Integers

    def keys(self, words: int) -> Integers:
        """One number for each entity, equal for equal ones; ``words`` is how many there are."""
        return (self.types * words + self.first) * words + self.last


def find_entities(tags: Integers, starts: Integers, known: TagSet) -> Entities:
    """Return the entities of sentences that lie one after another.

    Args:
        tags: number of each word's tag.
        starts: place of each sentence's first word, and the number of words.
        known: what the tags say.
    """
    # A word outside behind each sentence separates it from the next one.
    count = len(tags)
    places = np.insert(np.arange(count), starts[1:], -1)
    inside = places >= 0
    prefixes, types = np.zeros(len(places), np.int64), np.full(len(places), -1)
    prefixes[inside], types[inside] = known.prefixes[tags], known.types[tags]
    before, type_before = np.roll(prefixes, 1), np.roll(types, 1)  # the last word is outside
    outside, begin, within, end, single = range(len(_PREFIXES))
    other = types != type_before
    ends = (
        np.isin(before, (end, single))
        | (np.isin(before, (begin, within)) & np.isin(prefixes, (begin, single, outside)))
        | ((before != outside) & other)
    )
    opens = (
        np.isin(prefixes, (begin, single))
        | (np.isin(before, (end, single, outside)) & np.isin(prefixes, (end, within)))
        | ((prefixes != outside) & other)
    )
    opened = np.maximum.accumulate(np.where(opens, np.arange(len(places)), -1))
    behind = np.flatnonzero(ends)
    behind = behind[behind > 0]
    first = opened[behind - 1]
    return Entities(types[behind - 1], places[first], places[behind - 1])


def entity_counts(
    predicted: Integers, tags: Integers, starts: Integers, known: TagSet
) -> NDArray[np.float64]:
    """Return the entities of each sentence and type, [sentences, types, 3]: right, predicted, true.

    Args:
        predicted: number of each word's predicted tag.
        tags: number of each word's tag.
        starts: place of each sentence's first word, and the number of words.
        known: what the tags say.
    """
    shape = (len(starts) - 1, len(known.type_names), 3)
    counts: NDArray[np.float64] = np.zeros(shape)
    found, true = (find_entities(part, starts, known) for part in (predicted, tags))
    right = np.isin(found.keys(len(tags)), true.keys(len(tags)))
    for place, entities, chosen in ((0, found, right), (1, found, None), (2, true, None)):
        types, first = entities.types, entities.first
        if chosen is not None:
            types, first = types[chosen], first[chosen]
        sentences = np.searchsorted(starts, first, side="right") - 1
        cells = np.ravel_multi_index((sentences, types), shape[:2])
        counts[..., place] = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape[:2])
    return counts


def entity_f1(counts: Counts) -> float:
    """F1 of all entities, from their sum [types, 3]; 0 without any."""
    right, predicted, true = counts.reshape(-1, 3).sum(0)
    return float(2 * right / (predicted + true)) if predicted + true else 0.0


def entity_precision(counts: Counts) -> float:
    """Share of the predicted entities that are right; 0 without any."""
    right, predicted, _ = counts.reshape(-1, 3).sum(0)
    return float(right / predicted) if predicted else 0.0


def entity_recall(counts: Counts) -> float:
    """Share of the true entities that are predicted; 0 without any."""
    right, _, true = counts.reshape(-1, 3).sum(0)
    return float(right / true) if true else 0.0


def f1_of_types(counts: Counts) -> NDArray[np.float64]:
    """F1 of each type, from its counts [types, 3]; 0 without any."""
    right, predicted, true = counts.reshape(-1, 3).T
    total = predicted + true
    scores: NDArray[np.float64] = np.zeros_like(right)
    np.divide(2 * right, total, out=scores, where=total > 0)
    return scores


def entity_f1_macro(counts: Counts) -> float:
    """Unweighted mean of the F1 of every type that occurs or is predicted; 0 without any."""
    counts = counts.reshape(-1, 3)
    present = counts[:, 1:].sum(1) > 0
    return float(f1_of_types(counts)[present].mean()) if present.any() else 0.0
