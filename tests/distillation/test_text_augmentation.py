from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfcompress.distillation.config import AugmentationConfig
from hfcompress.distillation.text_augmentation import Augmentation, augment_texts, mixed_texts
from hfcompress.errors import ConfigError

METHODS: tuple[Augmentation, ...] = get_args(Augmentation)
TEXTS = ["one two three four five six", "seven eight nine ten", "eleven"]
WORDS = {word for text in TEXTS for word in text.split()}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_changes_text_and_adds_no_words(method: Augmentation) -> None:
    made = augment_texts(TEXTS, 60, seed=0, methods=(method,), rate=0.5)
    assert len(made) == 60
    assert any(text not in TEXTS for text in made)
    assert {word for text in made for word in text.split()} <= WORDS | {"[MASK]"}
    assert all(text.split() for text in made)


def test_the_seed_decides() -> None:
    assert augment_texts(TEXTS, 50, seed=1) == augment_texts(TEXTS, 50, seed=1)
    assert augment_texts(TEXTS, 50, seed=1) != augment_texts(TEXTS, 50, seed=2)


def test_every_text_is_used_once_in_each_pass() -> None:
    texts = [f"a{number}" for number in range(20)]
    made = augment_texts(texts, 40, seed=0, methods=("span",))
    assert Counter(made) == Counter(texts * 2)
    assert made[:20] != made[20:]


def test_mask_keeps_length_and_uses_the_token() -> None:
    made = augment_texts(TEXTS[:1], 400, seed=0, methods=("mask",), rate=0.25, mask_token="<m>")
    assert all(len(text.split()) == 6 for text in made)
    share = sum(text.split().count("<m>") for text in made) / (400 * 6)
    assert share == pytest.approx(0.25, abs=0.03)


@given(st.integers(0, 1000))
def test_drop_keeps_order_and_never_drops_all(seed: int) -> None:
    text = TEXTS[0].split()
    (made,) = augment_texts(TEXTS[:1], 1, seed, methods=("drop",), rate=0.9)
    places = [text.index(word) for word in made.split()]
    assert places
    assert places == sorted(places)


def test_swap_permutes() -> None:
    made = augment_texts(TEXTS[:1], 50, seed=0, methods=("swap",), rate=0.5)
    assert all(sorted(text.split()) == sorted(TEXTS[0].split()) for text in made)


def test_span_is_a_run_of_at_least_three_words() -> None:
    made = augment_texts(TEXTS[:1], 100, seed=0, methods=("span",))
    assert all(text in TEXTS[0] for text in made)
    assert {len(text.split()) for text in made} == {3, 4, 5, 6}


def test_recombine_joins_a_beginning_and_an_end() -> None:
    made = augment_texts(TEXTS[:2], 100, seed=0, methods=("recombine",))
    beginnings = [text.split()[:size] for text in TEXTS[:2] for size in range(1, 7)]
    ends = [text.split()[first:] for text in TEXTS[:2] for first in range(6)]
    joined = {" ".join(first + last) for first in beginnings for last in ends}
    assert set(made) <= joined


@pytest.mark.parametrize("method", ["mask", "drop", "replace", "swap"])
def test_a_rate_of_zero_corrupts_nothing(method: Augmentation) -> None:
    assert set(augment_texts(TEXTS, 30, 0, (method,), rate=0.0)) == set(TEXTS)


@pytest.mark.parametrize(
    ("texts", "methods", "rate"),
    [([], METHODS, 0.1), (["  "], METHODS, 0.1), (TEXTS, (), 0.1), (TEXTS, METHODS, 1.1)],
)
def test_bad_input_is_refused(
    texts: list[str], methods: tuple[Augmentation, ...], rate: float
) -> None:
    with pytest.raises(ValueError, match=r"must|texts contain no words"):
        augment_texts(texts, 3, 0, methods, rate)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="recombine"):
        augment_texts(TEXTS, 3, 0, methods=("shuffle",))  # type: ignore[arg-type]


@pytest.mark.parametrize(("share", "originals"), [(0.0, 12), (0.25, 9), (1.0, 0)])
def test_a_mixed_corpus_has_the_share_of_new_texts(share: float, originals: int) -> None:
    corpus = mixed_texts(TEXTS, 12, seed=0, share=share, methods=("mask",), rate=1.0)
    assert len(corpus) == 12
    assert sum(text in TEXTS for text in corpus) == originals
    counts = Counter(text for text in corpus if text in TEXTS)
    assert len(set(counts.values())) <= 1
    assert corpus == mixed_texts(TEXTS, 12, seed=0, share=share, methods=("mask",), rate=1.0)


def test_the_config_spells_the_options_of_a_mixed_corpus() -> None:
    config = AugmentationConfig.from_dict({"share": 1, "methods": ["drop", "swap"], "rate": 0.5})
    direct = mixed_texts(TEXTS, 5, 0, share=1.0, methods=("drop", "swap"), rate=0.5)
    options = dict(config)
    assert options.pop("unlabelled") is None  # further texts, mixed in before
    assert mixed_texts(TEXTS, 5, 0, **options) == direct
    with pytest.raises(ConfigError, match="methods"):
        AugmentationConfig.from_dict({"methods": ["shuffle"]})
    with pytest.raises(ValueError, match="share"):
        mixed_texts(TEXTS, 5, 0, share=1.5)
