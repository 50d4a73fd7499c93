"""Sentences with learnable labels, and tokenizers of every kind, made from nothing."""

from __future__ import annotations

import random
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import ByteLevel, RobertaProcessing, Sequence, TemplateProcessing
from transformers import BertTokenizer, PreTrainedTokenizerFast

GOOD = ["good", "fine", "lovely", "bright", "warm"]
BAD = ["bad", "dull", "weak", "cold", "grim"]
FILLER = ["film", "story", "cast", "scene", "plot", "music", "the", "a", "is", "was"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CORPUS = [
    "the story was slow and the lovely cast was slower",
    "slowest storytelling, lovelier scenes; she loves it!",
    "unbelievable believers believed unbelievably slowly",
    "Ünïcode naïve café: 12 345 or 12345?",
    "a scenery of stories, castles and castaways, loved by lovers",
]
"""What `trained_tokenizer` is trained on."""
CORPUS_SUBSET = CORPUS[:2]
OUTSIDE_CORPUS = ["castaways believed in naïve castles", "zebra 98"]
TOKENIZERS = ("wordpiece", "bert", "byte-level", "end-of-word", "prefixed")
"""Kinds of `trained_tokenizer`."""


def sentence(generator: random.Random, positive: bool) -> str:
    """Some filler and one or two words that decide the label."""
    words = generator.choices(FILLER, k=generator.randint(2, 8))
    words += generator.choices(GOOD if positive else BAD, k=generator.randint(1, 2))
    generator.shuffle(words)
    return " ".join(words)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer whose 25 tokens are the words of `sentence`."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *GOOD, *BAD, *FILLER])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    return _wordpiece(tokenizer, max_length=64)


def trained_tokenizer(kind: str) -> Any:
    """A tokenizer trained on `CORPUS`, with an added token after its own tokens."""
    if kind in ("wordpiece", "bert"):
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        # [unused0] comes first, so that the special tokens have the places BERT gives them.
        trainer = trainers.WordPieceTrainer(
            vocab_size=160, show_progress=False, special_tokens=["[unused0]", *SPECIAL]
        )
        tokenizer.train_from_iterator(CORPUS, trainer)
        bert = kind == "bert"
        fast: Any = (
            BertTokenizer(vocab=tokenizer.get_vocab()) if bert else _wordpiece(tokenizer, 32)
        )
    else:
        fast = _byte_level() if kind == "byte-level" else _characters(kind)
    fast.add_tokens(["<extra>"])
    return fast


def _wordpiece(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    vocabulary = tokenizer.get_vocab()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=max_length,
    )  # fmt: skip


def _byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380, show_progress=False,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = Sequence(
        [ByteLevel(trim_offsets=True), RobertaProcessing(("</s>", 2), ("<s>", 0))]
    )
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>")
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="<s>",
        bos_token="<s>", eos_token="</s>", sep_token="</s>", mask_token="<mask>",
    )  # fmt: skip


def _characters(kind: str) -> PreTrainedTokenizerFast:
    """BPE over characters: with a mark at the end of words, or before pieces inside them."""
    marks: Any = (
        {"end_of_word_suffix": "</w>"}
        if kind == "end-of-word"
        else {"continuing_subword_prefix": "##"}
    )
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", **marks))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=200, show_progress=False, special_tokens=["<pad>", "<unk>"], **marks
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
    )
