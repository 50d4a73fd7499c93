"""Questions on a text, with answers that stand in it: reading them from the columns of a data set.

The rows are those of SQuAD: ``question``, ``context`` and ``answers``, which holds the texts of the
right answers (``text``) and the places of their first characters (``answer_start``); both lists are
empty where the context has no answer (SQuAD 2.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datasets import Dataset, Features, List, Value

from hfcompress.data.columns import find_column, one_label, with_texts
from hfcompress.data.config import DataConfig
from hfcompress.errors import DataError

QUESTION_COLUMNS = ("question", "query")
CONTEXT_COLUMNS = ("context", "passage", "paragraph")
ANSWER_COLUMNS = ("answers", "answer", "label", "labels")
_FORM = '{"text": ["in 1843"], "answer_start": [17]}'
_LONGEST_SHOWN = 60


@dataclass(frozen=True)
class Answers:
    """The right answers to one question; none where the context has no answer.

    Attributes:
        texts: of each answer.
        starts: place of each answer's first character in the context.
    """

    texts: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()


def question_columns(config: DataConfig, rows: Dataset) -> tuple[str, str, str]:
    """Return the columns of questions, of contexts and of answers.

    Raises:
        DataError: a column that does not exist, or other than two columns of text.
    """
    label = one_label(config)
    if config.text is not None:
        named = (config.text,) if isinstance(config.text, str) else config.text
        if len(named) != 2:
            raise DataError("data.text names one column; name two: [question, context]")
        question, context = (find_column(name, (), rows, "text") for name in named)
        return question, context, find_column(label, ANSWER_COLUMNS, rows, "label")
    there = {name.casefold(): name for name in reversed(rows.column_names)}
    found = [
        next((there[name] for name in usual if name in there), None)
        for usual in (QUESTION_COLUMNS, CONTEXT_COLUMNS)
    ]
    if None in found:
        raise DataError(
            f"question-answering reads the columns question, context and answers ({_FORM}); the "
            f"data has: {', '.join(rows.column_names)}; name yours in data.text: [question, "
            f"context] and data.label"
        )
    return str(found[0]), str(found[1]), find_column(label, ANSWER_COLUMNS, rows, "label")


def asked_rows(
    rows: Dataset,
    columns: tuple[str, str, str],
    kept: Sequence[str],
    side: str,
    dropped: dict[str, int],
) -> Dataset:
    """Return the rows that have a question and a context, with their answers in ``label``.

    Args:
        rows: of one side.
        columns: from `question_columns`.
        kept: further columns to keep.
        side: for messages, and the reasons in ``dropped``.
        dropped: receives how many rows were left out, by reason.

    Raises:
        DataError: an answer that is not in its context at the place that the row names.
    """
    question, context, column = columns
    rows = with_texts(rows, (question, context))
    texts = [rows[name][:] for name in (question, context)]
    full = [
        place
        for place, pair in enumerate(zip(*texts, strict=True))
        if all(text and text.strip() for text in pair)
    ]
    if len(full) < len(rows):
        dropped[f"{side}: no question or no context"] = len(rows) - len(full)
    given = rows[column][:]
    answers = []
    for place in full:
        where = f"row {place} of the {side} side"
        found = read_answers(given[place], column, where)
        check_answers(found, texts[1][place], where)
        answers.append({"text": list(found.texts), "answer_start": list(found.starts)})
    feature = {"text": List(Value("string")), "answer_start": List(Value("int64"))}
    selected = rows.select(full).select_columns(list(dict.fromkeys([question, context, *kept])))
    return selected.add_column("label", answers, feature=Features(feature))


def read_answers(value: object, column: str, where: str) -> Answers:
    """Return the answers of one row.

    Args:
        value: ``{"text": ..., "answer_start": ...}`` with lists or with one value each, a list of
            such, or nothing where there is no answer.
        column: its name, for messages.
        where: the row, for messages.

    Raises:
        DataError: something else.
    """
    if value is None or value == []:
        return Answers()
    if isinstance(value, list):
        parts = [read_answers(one, column, where) for one in value]
        return Answers(
            tuple(text for part in parts for text in part.texts),
            tuple(start for part in parts for start in part.starts),
        )
    if not isinstance(value, Mapping) or not {"text", "answer_start"} <= value.keys():
        raise DataError(
            f"data: {where} has {_shown(value)} in {column!r}; give answers as {_FORM}, with empty "
            f"lists where the context has no answer"
        )
    texts, starts = (_listed(value[name]) for name in ("text", "answer_start"))
    if len(texts) != len(starts):
        raise DataError(
            f"data: {where} has {len(texts)} answers and {len(starts)} places in {column!r}; give "
            f"one answer_start for each text"
        )
    pairs = [(text, start) for text, start in zip(texts, starts, strict=True) if text]
    for text, start in pairs:
        if not isinstance(text, str) or not isinstance(start, int):
            raise DataError(
                f"data: {where} has {_shown((text, start))} in {column!r}; an answer is a text, "
                f"and its answer_start the number of its first character"
            )
    return Answers(
        tuple(str(text) for text, _ in pairs), tuple(int(str(start)) for _, start in pairs)
    )


def check_answers(answers: Answers, context: str, where: str) -> None:
    """Refuse answers that are not in their context where they should be.

    Raises:
        DataError: such an answer.
    """
    for text, start in zip(answers.texts, answers.starts, strict=True):
        there = context[start : start + len(text)] if start >= 0 else ""
        if there != text:
            at = context.find(text)
            hint = "it is nowhere in it" if at < 0 else f"it is at {at}"
            raise DataError(
                f"data: {where} has the answer {_shown(text)} at character {start} of its context, "
                f"where {_shown(there)} is ({hint}); correct answer_start, or the answer"
            )


def _listed(value: object) -> list[object]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 4]} ..."
