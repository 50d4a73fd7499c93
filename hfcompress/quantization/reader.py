"""``Reader``: questions and contexts in, answers out, whichever the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hfcompress.errors import ConfigError, DataError, ModelError
from hfcompress.quantization.engine import Arrays, Engine
from hfcompress.quantization.manifest import Manifest, TextSettings
from hfcompress.quantization.predictor import Predictor
from hfcompress.quantization.preparation import TextPreparation
from hfcompress.tasks.spans import (
    Answer,
    allowed_tokens,
    merged_answers,
    question_windows,
    ranked_spans,
    span_characters,
    span_probabilities,
)

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# Tokens of a window, and those that two of them share, where a call does not say them.
_WINDOW, _SHARED = 384, 128


@dataclass(frozen=True)
class _Window:
    """A window of an example, and the probabilities of its first and last tokens."""

    example: int
    encoding: Encoding
    probabilities: NDArray[np.float32]


class Reader(Predictor):
    """Questions and contexts in, answers out, as transformers 4's ``pipeline`` gives them.

    Args:
        folder: with tokenizer and config.
        engine, labels, manifest: as in `Predictor`.
        shape: as in `load`.
    """

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        labels: list[str],
        manifest: Manifest,
        shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(engine, labels, None, manifest, shape, "spans")
        self._settings: TextSettings | None = manifest.get("text")
        self._tokenizer: Tokenizer | None = None
        if self._settings is not None:
            prepared = TextPreparation(folder / "tokenizer.json", self._settings)
            self._tokenizer = prepared.plain_tokenizer

    def __call__(  # type: ignore[override]  # a question has a context, a text has none
        self,
        examples: object = None,
        batch_size: int = 32,
        *,
        question: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        top_k: int = 1,
        max_answer_len: int = 15,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
        max_seq_len: int | None = None,
        doc_stride: int | None = None,
    ) -> Answer | list[Answer] | list[Answer | list[Answer]]:
        """Answer::

            answer = hfcompress.load("reader")
            answer(question="Who wrote it?", context="Ada Lovelace wrote it in 1843.")
            # {"score": 0.98, "start": 0, "end": 12, "answer": "Ada Lovelace"}

        Args:
            examples: instead of ``question`` and ``context``: a dict with both, a tuple of both,
                or a list of such.
            batch_size: windows computed together.
            question: one question, or as many as there are contexts, or several on one context.
            context: what has the answers.
            top_k: answers to each question; 1 gives the best alone.
            max_answer_len: tokens of an answer.
            handle_impossible_answer: the answer may be "" (models of SQuAD 2.0).
            align_to_words: an answer is whole words.
            max_seq_len: tokens of a window; 384, or the model's limit, by default.
            doc_stride: tokens that two windows share; 128, or half a window, by default.

        Raises:
            ConfigError: a number below 1, or a window longer than the model.
            DataError: no question or no context, a question longer than a window, or a folder
                without tokenizer.
        """
        numbers = {"batch_size": batch_size, "top_k": top_k, "max_answer_len": max_answer_len}
        for name, number in numbers.items():
            if not isinstance(number, int) or number < 1:
                raise ConfigError(f"{name} is {number!r}; give a number from 1")
        pairs, single = _pairs(examples, question, context)
        windows = self._windows(pairs, batch_size, max_seq_len, doc_stride)
        count = 2 * top_k + 10 if align_to_words else top_k
        found: list[list[tuple[float, int, int]]] = [[] for _ in pairs]
        none = [1.0] * len(pairs)
        for window in windows:
            place, likely = window.example, window.probabilities
            none[place] = min(none[place], float(likely[0, 0] * likely[1, 0]))
            for score, first, last in ranked_spans(likely, max_answer_len, count):
                ends = span_characters(window.encoding, first, last, self._sequence, align_to_words)
                found[place].append((score, *ends))
        answers = [
            merged_answers(own, text, none[place] if handle_impossible_answer else None, top_k)
            for place, (own, (_, text)) in enumerate(zip(found, pairs, strict=True))
        ]
        rows = [own[0] if len(own) == 1 else own for own in answers]
        return rows[0] if single else rows

    @property
    def _sequence(self) -> int:
        """The number of the context among the two texts."""
        assert self._settings is not None
        return 0 if self._settings["padding_side"] == "left" else 1

    def _windows(
        self,
        pairs: Sequence[tuple[str, str]],
        batch_size: int,
        tokens: int | None,
        shared: int | None,
    ) -> list[_Window]:
        """Return all windows of all examples with the model's probabilities."""
        if self._tokenizer is None or self._settings is None:
            raise DataError("the folder has no tokenizer; save the model with one")
        limit = self._settings["max_length"]
        tokens = min(limit, _WINDOW) if tokens is None else tokens
        if not 1 <= tokens <= limit:
            raise ConfigError(f"max_seq_len is {tokens}; the model reads 1 to {limit} tokens")
        shared = min(tokens // 2, _SHARED) if shared is None else shared
        if not 0 <= shared < tokens:
            raise ConfigError(f"doc_stride is {shared}; give a number from 0 below {tokens}")
        encoded: list[tuple[int, Encoding]] = []
        for place, (question, context) in enumerate(pairs):
            try:
                parts = question_windows(
                    self._tokenizer, question, context, tokens, shared, not self._sequence
                )
            except ValueError as error:
                raise DataError(f"example {place}: {error}; shorten it") from None
            except TypeError as error:  # half a character (a lone surrogate)
                raise DataError(f"example {place} cannot be encoded ({error})") from None
            encoded += [(place, part) for part in parts]
        order = sorted(range(len(encoded)), key=lambda n: -len(encoded[n][1].ids))
        found: dict[int, _Window] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            logits = self.logits(self._arrays([encoded[n][1] for n in chosen]))
            for n, both in zip(chosen, logits, strict=True):
                place, part = encoded[n]
                allowed = allowed_tokens(part, self._sequence)
                found[n] = _Window(
                    place, part, span_probabilities(both[:, : len(part.ids)], allowed)
                )
        return [found[n] for n in range(len(encoded))]

    def _arrays(self, windows: Sequence[Encoding]) -> Arrays:
        """Return windows as one batch, padded on the right."""
        assert self._settings is not None
        width = max(len(window.ids) for window in windows)
        rows = {
            "input_ids": ([window.ids for window in windows], self._settings["pad_id"]),
            "attention_mask": ([[1] * len(window.ids) for window in windows], 0),
            "token_type_ids": (
                [window.type_ids for window in windows], self._settings.get("pad_type_id", 0)
            ),
        }  # fmt: skip
        names = self._settings.get("inputs") or list(rows)
        return {
            name: np.array([[*ids, *[fill] * (width - len(ids))] for ids in values], np.int64)
            for name, (values, fill) in rows.items()
            if name in names
        }

    def _scores(
        self, examples: object, text_pair: object, batch_size: int
    ) -> tuple[NDArray[np.float32], bool]:
        raise ModelError(
            "this model gives answers, not labels; call it with question=... and context=..."
        )


def _pairs(
    examples: object, question: object, context: object
) -> tuple[list[tuple[str, str]], bool]:
    """Return questions with their contexts, and whether the caller gave one alone.

    Raises:
        DataError: something else.
    """
    single = isinstance(examples, (Mapping, tuple)) and not _is_many(examples)
    if examples is not None:
        if question is not None or context is not None:
            raise DataError("give examples, or question and context, not both")
        if isinstance(examples, str) or not hasattr(examples, "__iter__"):
            raise DataError(f"{examples!r} has no context; give question=... and context=...")
        rows = [examples] if single else list(examples)
        given = [_members(row, place) for place, row in enumerate(rows)]
    else:
        if question is None or context is None:
            raise DataError("give question=... and context=..., or a list of dicts with both")
        single = isinstance(question, str) and isinstance(context, str)
        questions, contexts = (
            [value] if isinstance(value, str) else list(value)  # type: ignore[call-overload]
            for value in (question, context)
        )
        if isinstance(context, str):
            contexts = contexts * len(questions)
        if len(questions) != len(contexts):
            raise DataError(
                f"there are {len(questions)} questions and {len(contexts)} contexts; give one "
                f"context for each question, or one for all"
            )
        given = list(zip(questions, contexts, strict=True))
    if not given:
        raise DataError("nothing to answer; give at least one question")
    for place, pair in enumerate(given):
        for name, text in zip(("question", "context"), pair, strict=True):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"the {name} of example {place} is {text!r}; give a text")
    return given, single


def _is_many(examples: Mapping[str, object] | tuple[object, ...]) -> bool:
    """Return whether a tuple is of examples instead of a question and its context."""
    return isinstance(examples, tuple) and not all(isinstance(one, str) for one in examples)


def _members(row: object, place: int) -> tuple[str, str]:
    if isinstance(row, Mapping) and {"question", "context"} <= row.keys():
        return row["question"], row["context"]
    if isinstance(row, tuple) and len(row) == 2:
        return row
    raise DataError(
        f"example {place} has no question and context; give a dict with both, or a tuple of both"
    )
