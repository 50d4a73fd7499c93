"""Answers in a context, from the scores of their first and last tokens.

numpy alone, and a tokenizer of `tokenizers` where one is given: ``example.py`` contains some of
these functions as they are. They follow the pipeline "question-answering" of transformers 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Logits = NDArray[np.float32]
Marks = NDArray[np.bool_]


class Answer(TypedDict):
    """An answer, its score, and its first character and the one behind its last in the context."""

    score: float
    start: int
    end: int
    answer: str


def question_windows(
    tokenizer: Tokenizer,
    question: str,
    context: str,
    tokens: int,
    shared: int,
    context_first: bool,
) -> list[Encoding]:
    """Return the windows in which a model reads a context with its question.

    Args:
        tokenizer: without truncation and padding.
        question: asked of the context.
        context: divided where it is too long.
        tokens: of a window, at most.
        shared: tokens that two windows share; half of their context where it is not larger.
        context_first: the model has seen contexts before their questions.

    Raises:
        ValueError: the question leaves no room.
    """
    asked = tokenizer.encode(question, add_special_tokens=False)
    text = tokenizer.encode(context, add_special_tokens=False)
    room = tokens - len(asked.ids) - tokenizer.num_special_tokens_to_add(True)
    if room < 1:
        raise ValueError(f"a question of {len(asked.ids)} tokens does not fit into {tokens}")
    text.truncate(room, stride=shared if shared < room else room // 2)
    parts = [text, *text.overflowing]
    pairs = [(part, asked) if context_first else (asked, part) for part in parts]
    return [tokenizer.post_process(first, second) for first, second in pairs]


def allowed_tokens(window: Encoding, sequence: int) -> Marks:
    """Return which tokens take part: the context's, and a special first one for "no answer".

    Args:
        window: from `question_windows`.
        sequence: number of the context, 1, or 0 where it is first.
    """
    # tokenizers 0.23 forgets which tokens are of the first text; the second one's are known.
    second = np.array([number == 1 for number in window.sequence_ids])
    special = np.array(window.special_tokens_mask, bool)
    allowed = second if sequence == 1 else ~second & ~special
    allowed[0] |= special[0]
    return allowed


def span_probabilities(logits: Logits, allowed: Marks) -> Logits:
    """Return the probabilities of the first and the last token of an answer, [2, tokens].

    Args:
        logits: [2, tokens] of one window.
        allowed: [tokens], from `allowed_tokens`.
    """
    scores = np.where(allowed, logits, -10000.0).astype(np.float32)
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), np.float32)


def ranked_spans(probabilities: Logits, longest: int, count: int) -> list[tuple[float, int, int]]:
    """Return the answers of one window with the highest scores: score, first and last token.

    The first token, which may stand for "no answer", has no part in an answer.

    Args:
        probabilities: from `span_probabilities`, [2, tokens].
        longest: tokens of an answer.
        count: at most so many.
    """
    starts, ends = probabilities.copy()
    starts[0] = ends[0] = 0.0
    scores = np.tril(np.triu(np.outer(starts, ends)), longest - 1).ravel()
    best = np.argpartition(-scores, min(count, len(scores) - 1))[:count]
    best = best[np.argsort(-scores[best], kind="stable")]
    return [(float(scores[n]), *divmod(int(n), len(starts))) for n in best if scores[n] > 0]


def span_characters(
    window: Encoding, first: int, last: int, sequence: int, whole_words: bool = True
) -> tuple[int, int]:
    """Return the first character of an answer, and the one behind its last.

    Args:
        window: from `question_windows`.
        first, last: tokens of the answer.
        sequence: as in `allowed_tokens`.
        whole_words: take the whole words that the tokens are of.
    """
    words = [window.token_to_word(token) if whole_words else None for token in (first, last)]
    ends = [None if word is None else window.word_to_chars(word, sequence) for word in words]
    begin, end = ends
    if begin is None or end is None:
        return window.offsets[first][0], window.offsets[last][1]
    return begin[0], end[1]


def merged_answers(
    found: Sequence[tuple[float, int, int]], context: str, no_answer: float | None, count: int
) -> list[Answer]:
    """Return the answers with the highest scores; those in the same words are one.

    Args:
        found: score, first character and the one behind the last, window after window.
        context: that they are in.
        no_answer: score of "no answer"; None where there is always one.
        count: at most so many.
    """
    places = {}
    answers: list[Answer] = []
    for score, start, end in found:
        words = context[start:end]
        if words.lower() not in places:
            places[words.lower()] = len(answers)
            answers.append(Answer(score=0.0, start=start, end=end, answer=words))
        answers[places[words.lower()]]["score"] += score
    if no_answer is not None:
        answers.append(Answer(score=no_answer, start=0, end=0, answer=""))
    return sorted(answers, key=lambda answer: -answer["score"])[:count]


def best_span(starts: Logits, ends: Logits, longest: int) -> tuple[float, int, int]:
    """Return the answer with the highest sum of logits: the sum, first and last token.

    Args:
        starts, ends: [tokens] of the context alone; at least one.
        longest: tokens of an answer.
    """
    width = min(longest, len(starts))
    padded = np.concatenate([ends, np.full(width - 1, -np.inf, ends.dtype)])
    sums = starts[:, None] + np.lib.stride_tricks.sliding_window_view(padded, width)
    first, more = divmod(int(sums.argmax()), width)
    return float(sums[first, more]), first, first + more
