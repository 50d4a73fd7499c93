"""New text for a teacher to label: corrupted and recombined sentences (standard library only).

All words come from the given sentences. All randomness comes from the seed, so equal calls return
equal texts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal, get_args

Augmentation = Literal["mask", "drop", "replace", "swap", "recombine", "span"]
Words = list[str]


def augment_texts(
    texts: Sequence[str],
    count: int,
    seed: int,
    methods: Sequence[Augmentation] = get_args(Augmentation),
    rate: float = 0.2,
    mask_token: str = "[MASK]",
) -> list[str]:
    """Return new texts made from the given ones.

    Each pass visits the texts in a new random order and changes each by one method, drawn
    uniformly:

    ``mask``: replace each word by the mask token with probability ``rate`` (1903.12136).
    ``drop``: drop each word with probability ``rate``.
    ``replace``: replace each word with probability ``rate`` by a word drawn from all texts in
    proportion to its frequency.
    ``swap``: swap each word with a random other one with probability ``rate``.
    ``recombine``: join the beginning of the text and the end of another one.
    ``span``: keep a run of at least three words of the text.

    Args:
        texts: at least one text with a word; words are separated by white space.
        count: number of texts to make.
        seed: of the random choices.
        methods: methods to draw from.
        rate: probability that a word is corrupted, in [0, 1].
        mask_token: the tokenizer's mask token.

    Raises:
        ValueError: no text, no or an unknown method, or a rate out of range.
    """
    unknown = [name for name in methods if name not in _METHODS]
    if unknown or not methods:
        raise ValueError(f"methods must be some of {', '.join(_METHODS)}, not {list(methods)}")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must lie between 0 and 1, not {rate}")
    sentences = [words for words in (text.split() for text in texts) if words]
    if not sentences:
        raise ValueError("texts contain no words to augment; give at least one word")
    draw = _Draw(random.Random(seed), sentences, rate, mask_token)
    made: list[str] = []
    order: list[int] = []
    while len(made) < count:
        order = order or draw.random.sample(range(len(sentences)), len(sentences))
        method = _METHODS[draw.random.choice(list(methods))]
        made.append(" ".join(method(draw, sentences[order.pop()])))
    return made


def mixed_texts(
    texts: Sequence[str],
    count: int,
    seed: int,
    share: float = 0.5,
    methods: Sequence[Augmentation] = get_args(Augmentation),
    rate: float = 0.2,
    mask_token: str = "[MASK]",
) -> list[str]:
    """Return a training corpus of original and new texts, in random order.

    Args:
        texts: the original texts; each is used once before any is repeated.
        count: size of the corpus.
        seed: of the random choices.
        share: share of the corpus that is new, in [0, 1].
        methods, rate, mask_token: as in `augment_texts`.

    Raises:
        ValueError: a share out of range, or as `augment_texts`.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie between 0 and 1, not {share}")
    new = round(share * count)
    generator = random.Random(seed)
    originals: list[str] = []
    while len(originals) < count - new:
        originals += generator.sample(list(texts), len(texts))
    corpus = originals[: count - new] + augment_texts(texts, new, seed, methods, rate, mask_token)
    generator.shuffle(corpus)
    return corpus


class _Draw:
    """The random generator and word lists that the methods draw from."""

    def __init__(
        self, generator: random.Random, sentences: list[Words], rate: float, mask_token: str
    ) -> None:
        self.random = generator
        self.sentences = sentences
        self.vocabulary = [word for words in sentences for word in words]
        self.rate = rate
        self.mask_token = mask_token

    def hit(self) -> bool:
        """Return True with probability ``rate``."""
        return self.random.random() < self.rate


def _mask(draw: _Draw, words: Words) -> Words:
    return [draw.mask_token if draw.hit() else word for word in words]


def _drop(draw: _Draw, words: Words) -> Words:
    return [word for word in words if not draw.hit()] or [draw.random.choice(words)]


def _replace(draw: _Draw, words: Words) -> Words:
    return [draw.random.choice(draw.vocabulary) if draw.hit() else word for word in words]


def _swap(draw: _Draw, words: Words) -> Words:
    words = list(words)
    for first in range(len(words)):
        if draw.hit():
            second = draw.random.randrange(len(words))
            words[first], words[second] = words[second], words[first]
    return words


def _recombine(draw: _Draw, words: Words) -> Words:
    other = draw.random.choice(draw.sentences)
    beginning = words[: draw.random.randint(1, len(words))]
    return beginning + other[draw.random.randrange(len(other)) :]


def _span(draw: _Draw, words: Words) -> Words:
    length = draw.random.randint(min(3, len(words)), len(words))
    first = draw.random.randint(0, len(words) - length)
    return words[first : first + length]


_METHODS: dict[Augmentation, Callable[[_Draw, Words], Words]] = {
    "mask": _mask,
    "drop": _drop,
    "replace": _replace,
    "swap": _swap,
    "recombine": _recombine,
    "span": _span,
}
