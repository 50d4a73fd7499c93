"""More text for a teacher to label: corrupted and recombined sentences (standard library only).

The words stay those of the given sentences; nothing is looked up elsewhere. Everything is drawn
from the seed, so that the same call gives the same text.
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
    """New texts made from old ones.

    Texts are taken in turn, each pass in a new random order, and each goes through one method,
    drawn with equal chance:

    ``mask``: each word becomes the mask token with probability ``rate`` (Tang et al., 1903.12136).
    ``drop``: each word is left out with probability ``rate``.
    ``replace``: each word becomes a word drawn from all texts with probability ``rate``; common
    words are drawn more often.
    ``swap``: ``rate`` of the words change places with another one.
    ``recombine``: the beginning of the text, followed by the end of another one.
    ``span``: a run of at least three words of the text.

    Args:
        texts: at least one text with a word; words are what white space separates.
        count: how many to make.
        seed: of the random choices.
        methods: which methods to draw from.
        rate: share of the words that are corrupted, in [0, 1].
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
        raise ValueError("there is no text with a word in it to augment")
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
    """A training corpus of original and new texts, in random order.

    Args:
        texts: the original texts; each is used before any is used again.
        count: how many in all.
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
    """What the methods draw from."""

    def __init__(
        self, generator: random.Random, sentences: list[Words], rate: float, mask_token: str
    ) -> None:
        self.random = generator
        self.sentences = sentences
        self.vocabulary = [word for words in sentences for word in words]
        self.rate = rate
        self.mask_token = mask_token

    def hit(self) -> bool:
        """True with the probability of a corruption."""
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
