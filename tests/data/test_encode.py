"""Encoding and predicting: the data's order, whatever order the batches come in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hfcompress.data.config import DataConfig
from hfcompress.data.encode import Encoded, encode, encode_texts, text_limit
from hfcompress.data.load import load_examples
from hfcompress.errors import ModelError, SourceError
from hfcompress.inference import predict
from hfcompress.models.loading import ModelConfig, load_model
from hfcompress.tasks.image_classification import IMAGE_CLASSIFICATION
from hfcompress.tasks.text_classification import TEXT_CLASSIFICATION
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

TINY: dict[str, Any] = {"vocab_size": 60, "hidden_size": 8, "num_hidden_layers": 1,
                        "num_attention_heads": 2, "intermediate_size": 8}  # fmt: skip
BART: dict[str, Any] = {"vocab_size": 60, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1,
                        "encoder_attention_heads": 2, "decoder_attention_heads": 2,
                        "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "num_labels": 2,
                        "max_position_embeddings": 40}  # fmt: skip


@pytest.fixture
def encoded(write_data: Callable[..., Path]) -> Encoded:
    examples = load_examples(DataConfig(path=str(write_data(rows=37))), "text", False)
    return encode(examples, examples.eval, tiny_tokenizer(), None)


def test_predictions_keep_the_data_order(encoded: Encoded) -> None:
    model = tiny_bert()
    logits = predict(model, encoded, batch_size=8)
    assert logits.shape == (37, 2)
    for index in (0, 17, 36):
        row = encoded.rows[index]
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        np.testing.assert_allclose(logits[index], alone.numpy(), atol=1e-6)
    np.testing.assert_allclose(logits, predict(model, encoded, batch_size=37), atol=1e-6)


def test_batches_are_sorted_and_complete(encoded: Encoded) -> None:
    widths, seen = [], []
    for indices, batch in encoded.batches(8):
        widths.append(batch["input_ids"].shape[1])
        seen += indices.tolist()
        assert batch["labels"].tolist() == encoded.labels[indices].tolist()
    assert widths == sorted(widths, reverse=True)
    assert sorted(seen) == list(range(37))


def test_some_rows_only(encoded: Encoded) -> None:
    chosen = np.array([5, 3, 30])
    ((indices, _),) = encoded.batches(8, chosen)
    assert sorted(indices.tolist()) == [3, 5, 30]


def test_max_length_cuts(write_data: Callable[..., Path]) -> None:
    examples = load_examples(DataConfig(path=str(write_data())), "text", False)
    short = encode(examples, examples.eval, tiny_tokenizer(), 5)
    assert short.lengths is not None
    assert short.lengths.max() == 5


def test_progress_is_told(encoded: Encoded) -> None:
    heard: list[tuple[int, int]] = []
    predict(tiny_bert(), encoded, 10, lambda done, total: heard.append((done, total)))
    assert heard == [(10, 37), (20, 37), (30, 37), (37, 37)]


def test_images(tmp_path: Path) -> None:
    for kind, mode in (("cat", "L"), ("dog", "RGBA")):
        (tmp_path / kind).mkdir()
        for index in range(3):
            Image.new(mode, (9, 7)).save(tmp_path / kind / f"{index}.png")
    examples = load_examples(DataConfig(path=str(tmp_path)), "image", False)
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1,
                       num_attention_heads=2, intermediate_size=16)  # fmt: skip
    data = encode(examples, examples.eval, processor, None)
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    logits = predict(ViTForImageClassification(config), data, 4)
    assert logits.shape == (6, 2)


def test_models_by_folder(model_folder: Path) -> None:
    loaded = load_model(ModelConfig(path=str(model_folder)), TEXT_CLASSIFICATION, ["0", "1"])
    assert not loaded.new_head
    assert not loaded.model.training
    assert loaded.model.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    named = load_model(ModelConfig(path=str(model_folder)), TEXT_CLASSIFICATION, ["bad", "good"])
    assert not named.new_head
    assert named.model.config.id2label == {0: "bad", 1: "good"}
    three = load_model(
        ModelConfig(path=str(model_folder)), TEXT_CLASSIFICATION, ["a", "b", "c"], seed=3
    )
    assert three.new_head
    assert three.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    again = load_model(
        ModelConfig(path=str(model_folder)), TEXT_CLASSIFICATION, ["a", "b", "c"], seed=3
    )
    heads = [found.model.get_parameter("classifier.weight") for found in (three, again)]
    assert torch.equal(*heads)


def test_labels_of_the_model_decide_the_order(model_folder: Path) -> None:
    model = tiny_bert()
    model.config.id2label = {0: "NEGATIVE", 1: "POSITIVE"}
    model.config.label2id = {"NEGATIVE": 0, "POSITIVE": 1}
    model.save_pretrained(model_folder)
    config = ModelConfig(path=str(model_folder))
    loaded = load_model(config, TEXT_CLASSIFICATION, ["positive", "negative"])
    assert not loaded.new_head
    assert loaded.alignment is not None
    assert loaded.alignment.places == (1, 0)
    assert loaded.model.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}


def test_labels_that_do_not_correspond_get_a_new_head(model_folder: Path) -> None:
    model = tiny_bert()
    model.config.id2label = {0: "pos", 1: "neg"}
    model.config.label2id = {"pos": 0, "neg": 1}
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(model_folder)
    config, labels = ModelConfig(path=str(model_folder)), ["negative", "positive"]
    with pytest.raises(ModelError, match=r"data\.labels: \{negative: pos, \.\.\.\}"):
        load_model(config, TEXT_CLASSIFICATION, labels, new_head=False)
    loaded = load_model(config, TEXT_CLASSIFICATION, labels)
    assert loaded.new_head
    assert loaded.model.config.id2label == {0: "negative", 1: "positive"}
    assert loaded.model.config.problem_type == "single_label_classification"
    trained, new = (found.get_parameter("classifier.weight") for found in (model, loaded.model))
    assert new.shape == trained.shape
    assert not torch.isclose(new, trained).any()
    assert torch.equal(*(found.get_parameter("bert.embeddings.word_embeddings.weight")
                         for found in (model, loaded.model)))  # fmt: skip
    again = load_model(config, TEXT_CLASSIFICATION, labels)
    assert torch.equal(new, again.model.get_parameter("classifier.weight"))
    plain = load_model(config, TEXT_CLASSIFICATION, ["pos", "neg"], kind="multi_label")
    assert loaded.fingerprint == f"{plain.fingerprint}+new-head"


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no config\.json"):
        load_model(ModelConfig(path=str(tmp_path)), TEXT_CLASSIFICATION)


def test_the_task_decides_the_class() -> None:
    assert IMAGE_CLASSIFICATION.auto_class().__name__ == "AutoModelForImageClassification"


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        (BertForSequenceClassification(BertConfig(**TINY, max_position_embeddings=40)), 40),
        (RobertaForSequenceClassification(
            RobertaConfig(**TINY, max_position_embeddings=42, pad_token_id=1)), 40),
        (MPNetForSequenceClassification(MPNetConfig(**TINY, max_position_embeddings=42)), 40),
        (BartForSequenceClassification(BartConfig(**BART)), 40),
        (GPT2ForSequenceClassification(
            GPT2Config(vocab_size=60, n_embd=8, n_layer=1, n_head=2, n_positions=40)), 40),
        (ModernBertForSequenceClassification(
            ModernBertConfig(**TINY, pad_token_id=0, max_position_embeddings=16)), None),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_texts_fit_the_positions_of_the_model(model: Any, limit: int | None) -> None:
    assert text_limit(None, model) == limit
    assert text_limit(20, model) == 20
    assert text_limit(100, model) == (limit or 100)
    length = limit or 100
    ids = torch.full((1, length), 5)
    ids[0, -1] = 2  # the end of the text, which BART looks for
    with torch.no_grad():
        assert model(input_ids=ids).logits.shape == (1, 2)


def test_truncation_and_padding_sides_are_the_tokenizers() -> None:
    tokenizer = tiny_tokenizer()
    text = "a good film and a bad plot"
    whole = tokenizer(text)["input_ids"]
    for side in ("left", "right"):
        tokenizer.truncation_side = tokenizer.padding_side = side
        data = encode_texts([text, "a"], tokenizer, 5)
        assert data.rows[0]["input_ids"] == tokenizer(text, truncation=True, max_length=5).input_ids
        ((_, batch),) = data.batches(2)
        padded = batch["attention_mask"][1].tolist()
        assert padded == ([0, 0, 1, 1, 1] if side == "left" else [1, 1, 1, 0, 0])
    assert len(whole) > 5
