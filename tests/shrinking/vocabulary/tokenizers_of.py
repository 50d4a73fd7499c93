"""Small trained tokenizers of every kind whose vocabulary can be cut."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import ByteLevel, RobertaProcessing, Sequence, TemplateProcessing
from transformers import BertTokenizer, PreTrainedTokenizerFast

CORPUS = [
    "the story was slow and the lovely cast was slower",
    "slowest storytelling, lovelier scenes; she loves it!",
    "unbelievable believers believed unbelievably slowly",
    "Ünïcode naïve café: 12 345 or 12345?",
    "a scenery of stories, castles and castaways, loved by lovers",
]
SUBSET = CORPUS[:2]
OUTSIDE = ["castaways believed in naïve castles", "zebra 98"]
KINDS = ("wordpiece", "bert", "byte-level", "end-of-word", "prefixed")


def trained(kind: str) -> Any:
    """A tokenizer over `CORPUS` with an added token behind its own tokens."""
    if kind in ("wordpiece", "bert"):
        fast: Any = _wordpiece(kind)
    elif kind == "byte-level":
        fast = _byte_level()
    else:
        fast = _characters(kind)
    fast.add_tokens(["<extra>"])
    return fast


def _wordpiece(kind: str) -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The special tokens stand in the middle, as in BERT's own vocabulary.
    trainer = trainers.WordPieceTrainer(
        vocab_size=160, show_progress=False, special_tokens=["[unused0]", *special]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    vocabulary = tokenizer.get_vocab()
    if kind == "bert":
        return BertTokenizer(vocab=vocabulary)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=32,
    )  # fmt: skip


def _byte_level() -> Any:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        show_progress=False,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = Sequence(
        [ByteLevel(trim_offsets=True), RobertaProcessing(("</s>", 2), ("<s>", 0))]
    )
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>")
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="<s>",
        bos_token="<s>", eos_token="</s>", sep_token="</s>", mask_token="<mask>",
    )  # fmt: skip


def _characters(kind: str) -> Any:
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
