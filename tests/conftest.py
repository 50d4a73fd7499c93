"""Tiny models, tokenizers and data sets, made from nothing: no test needs a network."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

# The same examples in every run, and none kept from another one.
hypothesis.settings.register_profile("same", derandomize=True, database=None)
hypothesis.settings.load_profile("same")

GOOD = ["good", "fine", "lovely", "bright", "warm"]
BAD = ["bad", "dull", "weak", "cold", "grim"]
FILLER = ["film", "story", "cast", "scene", "plot", "music", "the", "a", "is", "was"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(autouse=True)
def _no_network_no_waiting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, a step cache of the test's own, and no more rounds of timing than asked for."""
    import huggingface_hub.constants

    from hfcompress.sweep import timing

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HFCOMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    torch.manual_seed(0)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer over the words above."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *GOOD, *BAD, *FILLER])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )


def make_bert(labels: int = 2, seed: int = 0) -> BertForSequenceClassification:
    """A BERT of two layers and 32 dimensions with random weights."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(GOOD) + len(BAD) + len(FILLER),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=labels,  # type: ignore[call-arg]
    )
    model: BertForSequenceClassification = BertForSequenceClassification(config).train(False)
    return model


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder as ``save_pretrained`` leaves it: tiny BERT and tokenizer."""
    folder = tmp_path / "model"
    make_bert().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def sentence(generator: random.Random, positive: bool) -> str:
    """Some filler and one or two words that decide the label."""
    words = generator.choices(FILLER, k=generator.randint(2, 8))
    words += generator.choices(GOOD if positive else BAD, k=generator.randint(1, 2))
    generator.shuffle(words)
    return " ".join(words)


@pytest.fixture
def write_data(tmp_path: Path) -> Callable[..., Path]:
    """Writes a TSV of learnable sentences: ``write_data("train.tsv", rows=100)``."""

    def write(name: str = "data.tsv", rows: int = 60, header: bool = True, seed: int = 0) -> Path:
        generator = random.Random(seed)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ["sentence\tlabel"] if header else []
        for index in range(rows):
            lines.append(f"{sentence(generator, index % 2 == 1)}\t{index % 2}")
        path.write_text("\n".join(lines) + "\n")
        return path

    return write
