"""Exact match and F1 of answers in words, as SQuAD's evaluation scripts have them.

Rajpurkar et al., 1606.05250 (version 1.1) and 1806.03822 (version 2.0, with questions that have no
answer). Both scripts lowercase an answer and drop punctuation, articles and additional spaces.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized_answer(text: str) -> str:
    """Return an answer in lower case, without punctuation, articles and additional spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(predicted: str, right: str) -> float:
    """Return 1 where both answers are the same after `normalized_answer`, else 0."""
    return float(normalized_answer(predicted) == normalized_answer(right))


def answer_f1(predicted: str, right: str) -> float:
    """Return the F1 of the words that both answers share.

    Two empty answers share all words: version 2.0's script says so, and version 1.1's never meets
    them.
    """
    own, asked = (normalized_answer(text).split() for text in (predicted, right))
    if not own or not asked:
        return float(own == asked)
    same = (Counter(own) & Counter(asked)).total()
    return 2 * same / (len(own) + len(asked))


ANSWER_METRICS: Mapping[str, Callable[[str, str], float]] = MappingProxyType(
    {"f1": answer_f1, "exact_match": exact_match}
)


def answer_score(metric: str, predicted: str, right: Sequence[str]) -> float:
    """Return the best value over the right answers of one question.

    Args:
        metric: a name of `ANSWER_METRICS`.
        predicted: the answer; empty for "there is none".
        right: the right ones; empty where there is none. One that is nothing but articles and
            punctuation does not count, as in version 2.0's script.
    """
    asked = [text for text in right if normalized_answer(text)] or [""]
    return max(ANSWER_METRICS[metric](predicted, text) for text in asked)
