"""The small text classifiers: transformers models, blind to padding, reloaded as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import hfcompress
from hfcompress.distillation.text_student import TextStudentConfig, make_text_student
from hfcompress.errors import ConfigError, ModelError
from hfcompress.models.configuration_text import TextConfig
from hfcompress.models.loading import weights_hash
from hfcompress.models.modeling_text import TextForSequenceClassification
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.quantize import quantize
from tests.fresh_process import run_fresh
from tests.tiny_models import shrinkable_model, tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("shared_exports")

IDS = torch.randint(1, 25, (3, 9), generator=torch.Generator().manual_seed(0))
IDS[1, 5:] = IDS[2, 2:] = 0
MASK = (IDS != 0).long()


def model(encoder: Any, **sizes: Any) -> TextForSequenceClassification:
    torch.manual_seed(0)
    config = TextConfig(encoder=encoder, vocab_size=25, embedding_size=16, width=8, **sizes)
    network = TextForSequenceClassification(config)
    network.train(False)
    return network


@pytest.mark.parametrize("encoder", ["cnn", "lstm"])
def test_padding_changes_nothing(encoder: str) -> None:
    network = model(encoder)
    together = network(input_ids=IDS, attention_mask=MASK).logits
    assert torch.equal(network(input_ids=IDS).logits, together)
    for row, logits in zip(IDS, together, strict=True):
        alone = network(input_ids=row[None, : int((row != 0).sum())]).logits[0]
        torch.testing.assert_close(alone, logits)
    wider = torch.cat([IDS, torch.full((3, 4), 7)], dim=1)
    mask = torch.cat([MASK, torch.zeros(3, 4, dtype=torch.long)], dim=1)
    torch.testing.assert_close(network(input_ids=wider, attention_mask=mask).logits, together)


@pytest.mark.parametrize("encoder", ["cnn", "lstm"])
def test_it_learns_an_order_of_words(encoder: str) -> None:
    """Whether 3 stands before 4: no bag of words can tell."""
    network = model(encoder, dropout=0.0).train()
    ids = torch.randint(5, 25, (64, 6), generator=torch.Generator().manual_seed(1))
    labels = torch.arange(64) % 2
    ids[labels == 0, 2], ids[labels == 0, 3] = 3, 4
    ids[labels == 1, 2], ids[labels == 1, 3] = 4, 3
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(40):
        loss = network(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < 0.1


@pytest.mark.parametrize("encoder", ["cnn", "lstm"])
def test_a_student_shares_the_teachers_words_and_labels(encoder: Any) -> None:
    teacher = tiny_bert(labels=3)
    teacher.config.id2label = {0: "bad", 1: "middling", 2: "good"}
    student = make_text_student(teacher, TextStudentConfig(encoder=encoder, width=8))
    words: Any = teacher.get_input_embeddings()
    assert torch.equal(student.embeddings.weight, words.weight)
    assert student.config.id2label == teacher.config.id2label
    assert student.config.num_labels == 3
    assert not student.training


def test_another_process_reloads_it_by_the_auto_class(tmp_path: Path) -> None:
    wanted, hashes = [], []
    for encoder in ("cnn", "lstm"):
        student = model(encoder, num_labels=3)
        student.save_pretrained(tmp_path / encoder)
        wanted.append(student(input_ids=IDS).logits.tolist())
        hashes.append(weights_hash(student))
    code = (
        "import sys, json, torch, hfcompress\n"
        "from transformers import AutoModelForSequenceClassification as Auto\n"
        "from hfcompress.models.loading import weights_hash\n"
        "ids = torch.tensor(json.loads(sys.argv[2]))\n"
        "for encoder in ('cnn', 'lstm'):\n"
        "    model = Auto.from_pretrained(sys.argv[1] + '/' + encoder)\n"
        "    print(json.dumps([weights_hash(model), model(input_ids=ids).logits.tolist()]))"
    )
    printed = run_fresh(code, str(tmp_path), json.dumps(IDS.tolist()))
    found = [json.loads(line) for line in printed.splitlines()]
    assert [weights for weights, _ in found] == hashes
    # A convolution adds in the order of its threads, which another process may have more of.
    for (_, logits), expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.tensor(logits), torch.tensor(expected))


@pytest.mark.parametrize(
    "change",
    [
        {"width": 9},
        {"kernels": (2, 3)},
        {"dense_size": 64},
        {"seed": 1},
        {"encoder": "lstm"},
        {"embedding_size": 16},
    ],
)
def test_every_size_of_a_student_counts(change: dict[str, Any]) -> None:
    teacher, base = tiny_bert(), TextStudentConfig(width=8)
    plain, other = (
        make_text_student(teacher, base),
        make_text_student(teacher, base.replace(**change)),
    )
    one, two = plain(input_ids=IDS).logits, other(input_ids=IDS).logits
    assert not torch.allclose(one, two)
    assert torch.equal(make_text_student(teacher, base)(input_ids=IDS).logits, one)


def test_a_narrower_table_is_the_nearest_one() -> None:
    """Of rank 8, it keeps as much of the centred table as the singular values say."""
    teacher = tiny_bert()
    table = teacher.get_input_embeddings().weight.detach().double()
    centred = table - table.mean(0)
    student = make_text_student(teacher, TextStudentConfig(width=8, embedding_size=8))
    assert student.embeddings.weight.shape == (len(table), 8)
    kept = student.embeddings.weight.double().square().sum()
    values = torch.linalg.svdvals(centred)
    torch.testing.assert_close(kept, values[:8].square().sum(), rtol=1e-5, atol=0)


def test_a_text_cnn_becomes_small_in_int8(tmp_path: Path) -> None:
    """Static int8 takes table and convolutions; what is saved is what was measured."""
    pytest.importorskip("onnxruntime")
    student = make_text_student(tiny_bert(), TextStudentConfig(width=64))
    rows = [{"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}]
    dynamic = quantize(student, QuantizationConfig())
    static = quantize(student, QuantizationConfig(mode="static"), rows)
    convolutions = sum(one.weight.numel() for one in cast(Any, student).encoder.convolutions)
    assert dynamic.bytes - static.bytes > 2 * convolutions
    expected = student(**rows[0]).logits.detach()
    small = static(**rows[0]).logits
    assert (small - expected).abs().max() < 0.2 * expected.abs().max() + 0.02
    static.save(tmp_path / "cnn", tiny_tokenizer())
    loaded: Any = hfcompress.load(tmp_path / "cnn")
    arrays = {name: value.numpy() for name, value in rows[0].items()}
    assert (loaded.engine.logits(arrays) == cast(Any, small).numpy()).all()


def test_dropout_counts_in_training() -> None:
    student = make_text_student(tiny_bert(), TextStudentConfig(width=8, dropout=0.5)).train()
    assert not torch.equal(student(input_ids=IDS).logits, student(input_ids=IDS).logits)
    still = make_text_student(tiny_bert(), TextStudentConfig(width=8, dropout=0)).train()
    assert torch.equal(still(input_ids=IDS).logits, still(input_ids=IDS).logits)


def test_mistakes() -> None:
    with pytest.raises(ModelError, match="does not read token ids"):
        make_text_student(shrinkable_model("vit"))
    with pytest.raises(ConfigError, match="cnn or lstm, not 'rnn'"):
        TextConfig(encoder="rnn")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="should be greater than"):
        TextStudentConfig(width=0)
    with pytest.raises(ConfigError, match="embedding_size 64 exceeds the teacher's 32"):
        make_text_student(tiny_bert(), TextStudentConfig(embedding_size=64))
