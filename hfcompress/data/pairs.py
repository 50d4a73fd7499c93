"""Scored pairs of texts: sentences with a similarity, or queries and passages with a relevance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from datasets import Dataset, Value
from numpy.typing import NDArray

from hfcompress.data.columns import find_column, one_label, with_texts
from hfcompress.data.config import DataConfig
from hfcompress.data.load import Examples
from hfcompress.data.read import read
from hfcompress.data.split import choose_splits, divided, limit_groups
from hfcompress.errors import DataError

PairKind = Literal["similarity", "retrieval"]
RELEVANCE = "relevance"
"""What the one output of a reranker is called."""
# Usual names of the two columns, and of the column with the score.
SIMILAR = (("sentence1", "sentence2"), ("sentence_A", "sentence_B"), ("text1", "text2"),
           ("text_a", "text_b"), ("premise", "hypothesis"), ("text", "text_pair"))  # fmt: skip
RANKED = (("query", "passage"), ("query", "document"), ("query", "answer"), ("question", "passage"),
          ("question", "answer"), ("question", "sentence"), ("anchor", "positive"))  # fmt: skip
SCORES = ("score", "similarity", "relatedness", "relatedness_score", "similarity_score",
          "relevance", "label", "labels")  # fmt: skip


@dataclass(frozen=True)
class PairColumns:
    """Where pairs are.

    Attributes:
        first, second: columns of texts; of queries and of passages.
        score: column of the score; None where every pair is a relevant one.
        kind: what the score says.
    """

    first: str
    second: str
    score: str | None
    kind: PairKind


def pair_columns(config: DataConfig, rows: Dataset, ranked_only: bool = False) -> PairColumns:
    """Return where the pairs are, as the config says it or by the usual names.

    Args:
        config: which columns.
        rows: of one split.
        ranked_only: they are queries and passages, whatever their columns are called.

    Raises:
        DataError: no two columns of texts, or no scores.
    """
    there = {name.casefold(): name for name in reversed(rows.column_names)}
    if config.text is not None:
        names = (config.text,) if isinstance(config.text, str) else config.text
        if len(names) != 2:
            raise DataError("data.text names one column; name two: [sentence1, sentence2]")
        first, second = (find_column(name, (), rows, "text") for name in names)
    else:
        known = [pair for pair in (*RANKED, *SIMILAR) if {*map(str.casefold, pair)} <= there.keys()]
        if not known:
            raise DataError(
                f"the data has no two columns of texts with usual names; write data.text: "
                f"[sentence1, sentence2]; its columns are: {', '.join(rows.column_names)}"
            )
        first, second = (there[name.casefold()] for name in known[0])
    lower = (first.casefold(), second.casefold())
    ranked = ranked_only or lower[0] in {pair[0] for pair in RANKED}
    kind: PairKind = "retrieval" if ranked else "similarity"
    if lower == ("anchor", "positive") and config.label is None and not set(SCORES) & there.keys():
        return PairColumns(first, second, None, kind)
    return PairColumns(first, second, find_column(one_label(config), SCORES, rows, "label"), kind)


def pair_examples(
    config: DataConfig, need_train: bool, splits: Mapping[str, Dataset] | None = None
) -> Examples:
    """Read pairs of texts with scores.

    Args:
        config: which data.
        need_train: a step trains or calibrates, so a training side must exist.
        splits: rows by split in the place of those that the config names.

    Raises:
        SourceError, DataError: as `hfcompress.data.load.load_examples`, `pair_columns`,
            `scored_pairs`, `answered_queries`.
    """
    raw, notes = read(config, "text") if splits is None else (dict(splits), ())
    chosen = choose_splits(raw, config, need_train)
    columns = pair_columns(config, chosen["eval"])
    dropped: dict[str, int] = {}
    sides = {side: scored_pairs(rows, columns, side, dropped) for side, rows in chosen.items()}
    both = divided(sides, config, need_train)
    measured = both["eval"]
    if measured is None or not len(measured):
        raise DataError(f"data: the eval side of {config.path!r} has no usable row")
    if columns.kind == "retrieval":
        measured = answered_queries(measured, columns.first, "eval", dropped)
    return Examples(
        train=both["train"], eval=measured, columns=(columns.first, columns.second),
        modality="text", labels=[], dropped=dropped, notes=notes, kind=columns.kind, config=config,
    )  # fmt: skip


def ranked_examples(
    config: DataConfig, need_train: bool, splits: Mapping[str, Dataset] | None = None
) -> Examples:
    """Read queries with passages to rank, and their relevance.

    A query's passages stay together: on one side, and below a limit of rows.

    Args:
        config, need_train, splits: as in `pair_examples`.

    Raises:
        SourceError, DataError: as `pair_examples`; no passage that is not relevant.
    """
    raw, notes = read(config, "text") if splits is None else (dict(splits), ())
    chosen = choose_splits(raw, config, need_train)
    columns = pair_columns(config, chosen["eval"], ranked_only=True)
    dropped: dict[str, int] = {}
    sides = {side: scored_pairs(rows, columns, side, dropped) for side, rows in chosen.items()}
    together = config.replace(group=columns.first, max_train=None, max_eval=None)
    both = divided(sides, together, need_train)
    measured = both["eval"]
    if measured is None or not len(measured):
        raise DataError(f"data: the eval side of {config.path!r} has no usable row")
    measured = answered_queries(measured, columns.first, "eval", dropped)
    if min(measured["label"][:]) > 0:
        raise DataError(
            "data: every passage of the eval side is relevant, so that any order is right; give "
            "passages with the label 0, too"
        )
    train, measured = (
        limit_groups(rows, columns.first, most, config.seed)
        for rows, most in ((both["train"], config.max_train), (measured, config.max_eval))
    )
    assert measured is not None
    return Examples(
        train=train, eval=measured, columns=(columns.first, columns.second), modality="text",
        labels=[RELEVANCE], dropped=dropped, notes=(*notes, *_graded(train)), kind="ranking",
        config=config,
    )  # fmt: skip


def _graded(train: Dataset | None) -> tuple[str, ...]:
    most = 0.0 if train is None or not len(train) else max(train["label"][:])
    if most <= 1:
        return ()
    return (f"training divides relevances by the greatest, {most:g}",)


def scored_pairs(
    rows: Dataset, columns: PairColumns, side: str, dropped: dict[str, int]
) -> Dataset:
    """Return the pairs that have both texts and a score, the score as a number in ``label``.

    Args:
        rows: of one side.
        columns: where the pairs are.
        side: for the reasons in ``dropped``.
        dropped: receives how many rows were left out, by reason.

    Raises:
        DataError: a score that is not a finite number; a relevance below 0.
    """
    first, second = columns.first, columns.second
    rows = with_texts(rows, (first, second))
    texts = [rows[name][:] for name in (first, second)]
    given = [1.0] * len(rows) if columns.score is None else rows[columns.score][:]
    full = [
        place
        for place, pair in enumerate(zip(*texts, strict=True))
        if all(text and text.strip() for text in pair) and given[place] not in (None, "")
    ]
    if len(full) < len(rows):
        dropped[f"{side}: no text or no score"] = len(rows) - len(full)
    scores = [_number(given[place], place, columns) for place in full]
    kept = rows.select(full).select_columns([first, second])
    return kept.add_column("label", scores).cast_column("label", Value("float64"))


def _number(value: object, place: int, columns: PairColumns) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = float("nan")
    low = 0.0 if columns.kind == "retrieval" else -np.inf
    if not np.isfinite(number) or number < low:
        raise DataError(
            f"row {place}: {value!r} in column {columns.score!r} is not "
            f"{'a relevance from 0' if columns.kind == 'retrieval' else 'a score'}; give a number"
        )
    return number


def answered_queries(rows: Dataset, first: str, side: str, dropped: dict[str, int]) -> Dataset:
    """Return the pairs of queries that have a relevant passage; the others are counted.

    Args:
        rows: from `scored_pairs`.
        first: the column of queries.
        side: for the reasons in ``dropped``.
        dropped: receives how many queries were left out.

    Raises:
        DataError: no query is left.
    """
    queries, scores = rows[first][:], rows["label"][:]
    good = {query for query, score in zip(queries, scores, strict=True) if score > 0}
    lost = len(set(queries) - good)
    if not good:
        raise DataError(
            f"data: no query of the {side} side has a relevant passage (a score above 0)"
        )
    if not lost:
        return rows
    dropped[f"{side}: queries without a relevant passage"] = lost
    return rows.select([place for place, query in enumerate(queries) if query in good])


def unique_texts(columns: Iterable[list[str]]) -> tuple[list[str], list[NDArray[np.int64]]]:
    """Return all different texts in the order of their first place, and each column's numbers.

    Args:
        columns: texts.
    """
    numbers: dict[str, int] = {}
    places = [
        np.array([numbers.setdefault(text, len(numbers)) for text in column], np.int64)
        for column in columns
    ]
    return list(numbers), places
