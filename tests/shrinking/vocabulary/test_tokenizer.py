"""A cut tokenizer: the corpus as before, everything else still split, the file reloads."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hfcompress.errors import CalibrationError, ModelError
from hfcompress.shrinking.vocabulary.tokenizer import VocabularyConfig, count_kept, cut_tokenizer
from hfcompress.shrinking.vocabulary.tokenizer_json import tokens_of, tokens_to_keep, with_tokens
from tests.tiny_tokenizers import (
    CORPUS,
    CORPUS_SUBSET,
    OUTSIDE_CORPUS,
    TOKENIZERS,
    trained_tokenizer,
)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_corpus_is_split_as_before(kind: str) -> None:
    tokenizer = trained_tokenizer(kind)
    cut = cut_tokenizer(tokenizer, CORPUS_SUBSET)
    assert len(cut.kept) < cut.before == len(tokenizer)
    assert len(cut.tokenizer) == len(cut.kept)
    for text in CORPUS_SUBSET:
        assert cut.tokenizer.tokenize(text) == tokenizer.tokenize(text)
        old, new = tokenizer(text)["input_ids"], cut.tokenizer(text)["input_ids"]
        assert old == [cut.kept[number] for number in new]
        pair = tokenizer(text, "lovely")["input_ids"]
        assert pair == [cut.kept[n] for n in cut.tokenizer(text, "lovely")["input_ids"]]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_counting_says_what_cutting_leaves(kind: str) -> None:
    tokenizer, texts = trained_tokenizer(kind), [*CORPUS_SUBSET, *CORPUS_SUBSET, *CORPUS]
    counted = count_kept(tokenizer, texts, (1, 2, 3), required=(5,))
    for least, count in counted.items():
        cut = cut_tokenizer(tokenizer, texts, VocabularyConfig(min_count=least), required=(5,))
        assert len(cut.kept) == count
    assert counted[1] > counted[3]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_other_text_is_split_into_kept_pieces(kind: str) -> None:
    tokenizer = trained_tokenizer(kind)
    cut = cut_tokenizer(tokenizer, CORPUS_SUBSET).tokenizer
    unknown = tokenizer.unk_token
    for text in [*CORPUS, *OUTSIDE_CORPUS]:
        before, after = tokenizer.tokenize(text), cut.tokenize(text)
        assert after.count(unknown) == before.count(unknown)
        assert len(after) >= len(before)
    assert any(len(cut.tokenize(text)) > len(tokenizer.tokenize(text)) for text in CORPUS)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_random_words_of_the_corpus_letters_keep_their_letters(kind: str) -> None:
    """Nothing is lost on the way: the pieces spell the word."""
    tokenizer = trained_tokenizer(kind)
    cut = cut_tokenizer(tokenizer, CORPUS_SUBSET).tokenizer
    generator = random.Random(0)
    words = ["".join(generator.choices("lovestrycadwn", k=8)) for _ in range(100)]
    words = [word for word in words if tokenizer.unk_token not in tokenizer.tokenize(word)]
    assert len(words) > 20
    for word in words:
        pieces = "".join(cut.tokenize(word))
        for mark in ("##", "</w>"):
            pieces = pieces.replace(mark, "")
        assert pieces == word


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_special_and_added_tokens_stay(kind: str) -> None:
    tokenizer = trained_tokenizer(kind)
    cut = cut_tokenizer(tokenizer, CORPUS_SUBSET).tokenizer
    assert cut.special_tokens_map == tokenizer.special_tokens_map
    for name in (*tokenizer.all_special_tokens, "<extra>"):
        assert cut.convert_ids_to_tokens(cut.convert_tokens_to_ids(name)) == name
    assert "<extra>" in cut.tokenize("the <extra> cast")
    padded = cut(["the", "the lovely cast"], padding=True)["input_ids"]
    assert padded[0][-1] == cut.pad_token_id
    assert cut.decode(cut("the cast")["input_ids"], skip_special_tokens=True) == tokenizer.decode(
        tokenizer("the cast")["input_ids"], skip_special_tokens=True
    )


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_it_reloads_from_its_folder(kind: str, tmp_path: Path) -> None:
    cut = cut_tokenizer(trained_tokenizer(kind), CORPUS_SUBSET).tokenizer
    cut.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == cut.get_vocab()
    for text in [*CORPUS, *OUTSIDE_CORPUS]:
        assert again(text)["input_ids"] == cut(text)["input_ids"]
    assert type(again) is type(cut)
    assert cut.model_max_length == trained_tokenizer(kind).model_max_length


def test_rare_tokens_go_where_that_is_asked() -> None:
    tokenizer = trained_tokenizer("wordpiece")
    all_used = cut_tokenizer(tokenizer, CORPUS_SUBSET)
    often = cut_tokenizer(tokenizer, CORPUS_SUBSET, VocabularyConfig(min_count=2))
    assert set(often.kept) < set(all_used.kept)


def test_required_tokens_stay() -> None:
    tokenizer = trained_tokenizer("wordpiece")
    number = tokenizer.convert_tokens_to_ids("[unused0]")
    missing = tokenizer.convert_tokens_to_ids("castaways")
    assert missing != tokenizer.unk_token_id
    assert missing not in cut_tokenizer(tokenizer, CORPUS_SUBSET).kept
    assert {number, missing} <= set(
        cut_tokenizer(tokenizer, CORPUS_SUBSET, None, [missing, number]).kept
    )


def test_merges_of_old_files_are_read() -> None:
    tokenizer = trained_tokenizer("byte-level")
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    old = {**data, "model": {**data["model"]}}
    old["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    used = tokenizer(CORPUS_SUBSET[0])["input_ids"]
    assert tokens_to_keep(old, used) == tokens_to_keep(data, used)
    kept = tokens_to_keep(data, used)
    assert with_tokens(old, kept) == with_tokens(data, kept)


@pytest.mark.parametrize("texts", [[], ["東京", "京"], ["", " "]])
def test_a_corpus_that_shares_no_token_is_refused(texts: list[str]) -> None:
    with pytest.raises(CalibrationError, match=rf"the {len(texts)} texts share no token"):
        cut_tokenizer(trained_tokenizer("wordpiece"), texts)


def test_other_kinds_are_refused() -> None:
    unigram: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer(models.Unigram([("a", -1.0), ("b", -2.0)], 0)), unk_token="a"
    )
    with pytest.raises(ModelError, match="of the kind Unigram; only"):
        cut_tokenizer(unigram, ["a"])
    with pytest.raises(ModelError, match=r"keeps no tokenizer\.json"):
        cut_tokenizer(object(), ["a"])  # type: ignore[arg-type]


def test_a_tokenizer_with_rules_of_its_own_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_few(data: Any, used: Any, required: Any = ()) -> list[str]:
        lost = tokens_of(data).keys() - {"slower", "slow"}
        return sorted(lost, key=lambda token: tokens_of(data)[token])

    monkeypatch.setattr("hfcompress.shrinking.vocabulary.tokenizer.tokens_to_keep", too_few)
    with pytest.raises(ModelError, match="otherwise than before"):
        cut_tokenizer(trained_tokenizer("wordpiece"), CORPUS_SUBSET)
