"""Embedding and tokenizer cut together: the same logits, and a plain checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, BertConfig, BertForMaskedLM
from transformers import AutoModelForSequenceClassification as AutoModelForText

import hfcompress
from hfcompress.errors import ModelError
from hfcompress.shrinking.vocabulary.shrink import keep_tokens, required_tokens, shrink_vocabulary
from tests.fresh_process import run_fresh
from tests.tiny_models import SHRINKABLE_TEXTS, shrinkable_model
from tests.tiny_tokenizers import CORPUS, CORPUS_SUBSET, trained_tokenizer


def model_for(model_type: str, tokenizer: Any) -> Any:
    """A tiny classifier with more rows than the tokenizer has tokens, as models often have."""
    torch.manual_seed(0)
    fields = {
        "vocab_size": len(tokenizer) + 3,
        "max_position_embeddings": 80,
        "pad_token_id": tokenizer.pad_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }
    config = shrinkable_model(model_type).config.to_dict() | fields
    auto: Any = AutoModelForText
    return auto.from_config(AutoConfig.for_model(**config)).eval()


def answers(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        found: Tensor = model(**inputs).logits
    return found


@pytest.mark.parametrize("model_type", SHRINKABLE_TEXTS)
def test_the_corpus_gets_the_same_logits_after_reloading(model_type: str, tmp_path: Path) -> None:
    tokenizer = trained_tokenizer(
        "byte-level" if model_type in ("roberta", "modernbert") else "bert"
    )
    model = model_for(model_type, tokenizer)
    before = answers(model, tokenizer, CORPUS_SUBSET)
    rows = model.config.vocab_size
    cut, report = shrink_vocabulary(model, tokenizer, CORPUS_SUBSET)
    assert torch.equal(answers(model, cut, CORPUS_SUBSET), before)
    assert report.tokens_before == rows
    assert report.tokens == len(cut) == model.config.vocab_size
    removed = (rows - len(cut)) * model.get_input_embeddings().embedding_dim
    assert report.parameters_before - report.parameters == removed > 0
    assert model.config.pad_token_id == cut.pad_token_id
    assert model.get_input_embeddings().padding_idx == cut.pad_token_id

    model.save_pretrained(tmp_path)
    cut.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    again = AutoModelForText.from_pretrained(tmp_path)
    assert torch.equal(answers(again, cut, CORPUS_SUBSET), before)
    assert torch.equal(answers(again, cut, CORPUS), answers(model, cut, CORPUS))


def test_a_process_without_hfcompress_loads_it(tmp_path: Path) -> None:
    tokenizer = trained_tokenizer("bert")
    model = model_for("bert", tokenizer)
    cut, _ = shrink_vocabulary(model, tokenizer, CORPUS_SUBSET)
    model.save_pretrained(tmp_path)
    cut.save_pretrained(tmp_path)
    code = (
        "import sys, json, torch\n"
        "from transformers import AutoTokenizer, AutoModelForSequenceClassification as Auto\n"
        "folder, texts = sys.argv[1], json.loads(sys.argv[2])\n"
        "inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors='pt')\n"
        "inputs.pop('token_type_ids', None)\n"
        "assert 'hfcompress' not in sys.modules\n"
        "with torch.no_grad():\n"
        "    print(json.dumps(Auto.from_pretrained(folder)(**inputs).logits.double().tolist()))\n"
    )
    printed = run_fresh(code, str(tmp_path), json.dumps(CORPUS))
    found = torch.tensor(json.loads(printed), dtype=torch.float64)
    assert torch.allclose(found, answers(model, cut, CORPUS).double(), atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_the_scores_of_tokens_are_cut_too(tied: bool, tmp_path: Path) -> None:
    tokenizer = trained_tokenizer("bert")
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, tie_word_embeddings=tied, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = BertForMaskedLM(config).eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
    before = answers(model, tokenizer, CORPUS_SUBSET)
    cut, _ = shrink_vocabulary(model, tokenizer, CORPUS_SUBSET)
    kept = [
        tokenizer.convert_tokens_to_ids(name)
        for name in cut.convert_ids_to_tokens(list(range(len(cut))))
    ]
    after = answers(model, cut, CORPUS_SUBSET)
    assert torch.allclose(after, before[..., kept], atol=1e-6)
    embedding = model.bert.embeddings.word_embeddings.weight
    assert (model.cls.predictions.decoder.weight is embedding) is tied
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(answers(again, cut, CORPUS_SUBSET), after)


def test_training_goes_on(tmp_path: Path) -> None:
    tokenizer = trained_tokenizer("bert")
    model = model_for("bert", tokenizer)
    cut, _ = shrink_vocabulary(model, tokenizer, CORPUS_SUBSET)
    weight = model.get_input_embeddings().weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = weight.clone()
    inputs = cut(CORPUS_SUBSET, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids")
    model(**inputs, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    assert not torch.equal(weight, before)
    assert torch.equal(weight[cut.pad_token_id], before[cut.pad_token_id])


def test_tokens_that_the_config_names_stay() -> None:
    tokenizer = trained_tokenizer("bert")
    model = model_for("bert", tokenizer)
    number = tokenizer.convert_tokens_to_ids("castaways")
    model.config.decoder_start_token_id = number
    model.config.forced_token_id = [number, tokenizer.sep_token_id]
    assert number in required_tokens(model)
    cut, _ = shrink_vocabulary(model, tokenizer, CORPUS_SUBSET)
    new = cut.convert_tokens_to_ids("castaways")
    assert model.config.decoder_start_token_id == new != number
    assert model.config.forced_token_id == [new, cut.sep_token_id]


def test_positions_that_follow_the_padding_number_stay_right() -> None:
    """RoBERTa numbers positions from the padding token's number on: it must not move."""
    tokenizer = trained_tokenizer("byte-level")
    model = model_for("roberta", tokenizer)
    moved = tokenizer.convert_tokens_to_ids("l")
    model.config.pad_token_id = moved
    assert set(range(moved)) <= set(required_tokens(model))
    with pytest.raises(ModelError, match="counts positions from the number of its padding"):
        keep_tokens(model, [0, moved])


def test_a_tokenizer_of_another_model_is_refused() -> None:
    tokenizer = trained_tokenizer("bert")
    model = shrinkable_model("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError, match=r"a token \d+ and the model 60 rows"):
        shrink_vocabulary(model, tokenizer, CORPUS)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    with pytest.raises(ModelError, match="no embedding of tokens"):
        shrink_vocabulary(shrinkable_model("vit"), tokenizer, CORPUS_SUBSET)


def test_it_is_public() -> None:
    assert hfcompress.shrink_vocabulary is shrink_vocabulary
