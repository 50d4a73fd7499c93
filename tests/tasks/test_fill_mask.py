"""Masked language models: pseudo-perplexity, masks in training, folders that fill masks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForMaskedLM, BertConfig, pipeline

import hfcompress
from hfcompress.cli.commands import main
from hfcompress.data.config import DataConfig
from hfcompress.distillation.config import DistillationLossConfig
from hfcompress.distillation.teacher_loss import TeacherLoss
from hfcompress.errors import ConfigError, DataError, ModelError
from hfcompress.inference import predict
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.quantize import quantize
from hfcompress.recipes.schema import parse_recipe
from hfcompress.sweep import comparison
from hfcompress.sweep.run import run
from hfcompress.tasks import fill_mask
from hfcompress.tasks.fill_mask import FILL_MASK as TASK
from hfcompress.tasks.registry import find_task, infer_task
from tests.fresh_process import run_fresh
from tests.tasks.masked import masked_bert, plain_rows, save_backbone
from tests.tasks.tagged import write_rows
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

MASK = 4


def examples(count: int = 12, text: str | None = None, **fields: Any) -> Any:
    rows = [{"text": text}] * count if text else plain_rows(count)
    data = Dataset.from_list(rows)
    config = DataConfig(path="data", **fields)
    return TASK.load(config, need_train=True, splits={"train": data, "validation": data})


def encoded(side: str = "eval", max_length: int | None = None, **fields: Any) -> Any:
    found = examples(**fields)
    return TASK.encode(found, getattr(found, side), tiny_tokenizer(), max_length)


# --- the metric --------------------------------------------------------------------------------


@torch.inference_mode()
def by_hand(model: Any, texts: list[str]) -> list[tuple[float, int, int]]:
    """Log-likelihood, tokens and right tokens of each text, one forward pass for each token."""
    found = []
    for text in texts:
        ids = tiny_tokenizer()(text, return_tensors="pt")["input_ids"]
        total, right = 0.0, 0
        for place in range(1, ids.shape[1] - 1):
            shown = ids.clone()
            shown[0, place] = MASK
            likely = model(input_ids=shown).logits[0, place].double().log_softmax(-1)
            total += float(likely[ids[0, place]])
            right += int(likely.argmax() == ids[0, place])
        found.append((total, ids.shape[1] - 2, right))
    return found


@pytest.mark.parametrize("batch_size", [1, 7])
def test_masks_each_token_in_turn(batch_size: int) -> None:
    model, data = masked_bert(), encoded()
    parts = np.array(by_hand(model, data.source["text"][:]))
    outputs, asked = predict(model, data, batch_size), TASK.references(data, [])
    total, tokens, right = parts.sum(0)
    assert len(data) == tokens
    assert data.notes == (
        f"measured by masking each of the {len(data)} tokens of 12 texts in turn",
    )
    found = TASK.quality("pseudo_perplexity", outputs, asked)
    assert found.value == pytest.approx(math.exp(-total / tokens), rel=1e-5)
    assert found.n == 12
    assert found.low < found.value < found.high
    assert TASK.metric("accuracy", outputs, asked) == pytest.approx(right / tokens)
    sums = np.add.reduceat(outputs[:, 0].astype(float), asked.starts[:-1])
    np.testing.assert_allclose(sums, parts[:, 0], rtol=1e-4)


def test_lower_is_better_and_paired_over_texts() -> None:
    data = encoded()
    asked, model = TASK.references(data, []), masked_bert()
    outputs = predict(model, data, 16)
    worse = outputs.copy()
    worse[:, 0] -= 0.5
    found = TASK.quality("pseudo_perplexity", worse, asked, outputs)
    assert found.drop == pytest.approx(found.value - found.value / math.exp(0.5), rel=1e-5)
    assert found.drop_low is not None
    assert found.drop_low > 0
    assert (found.agreement, found.mcnemar_p) == (1.0, None)
    with pytest.raises(DataError, match="'perplexity' is not a metric of fill-mask"):
        TASK.metric("perplexity", outputs, asked)
    with pytest.raises(
        DataError, match="compare models that divide the texts into the same tokens"
    ):
        TASK.metric("accuracy", outputs[1:], asked)


def test_rows_of_two_runs_are_compared_over_texts() -> None:
    data = encoded()
    asked, outputs = TASK.references(data, []), predict(masked_bert(), data, 16)
    worse = outputs.copy()
    worse[:, 0] -= 0.5
    name = "pseudo_perplexity"
    first, second = (TASK.units(name, part, asked) for part in (outputs, worse))
    found = comparison._by_units(name, TASK.name, first, second)
    assert found is not None
    assert (found.n, found.test) == (12, "paired bootstrap")
    assert found.value == pytest.approx(-TASK.quality(name, outputs, asked, worse).drop)  # type: ignore[operator]
    assert found.value > 0
    second[0, 1] += 1  # other tokens
    assert comparison._by_units(name, TASK.name, first, second) is None


def test_long_texts_are_read_in_windows_and_each_token_counts_once() -> None:
    text = " ".join(["good film was the bad story"] * 6)
    data = encoded(max_length=16, count=2, text=text, stride=6)
    assert len(data) == 2 * 36
    assert data.lengths.max() == 16
    labels = [label for row in data.rows["labels"][:36] for label in row if label != -100]
    assert sorted(labels) == sorted(tiny_tokenizer()(text, add_special_tokens=False)["input_ids"])
    cut = encoded(max_length=16, count=2, text=text, overflow="cut")
    assert len(cut) == 2 * 14


def test_too_many_tokens_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = len(encoded())
    monkeypatch.setattr(fill_mask, "MOST_MASKED", 20)
    data = encoded()
    assert len(data) == 20
    assert data.notes[0].startswith(f"measured by masking a sample of 20 of the {whole} tokens of")
    assert data.rows["labels"][:] == encoded().rows["labels"][:]
    assert data.rows["labels"][:] != encoded(seed=1).rows["labels"][:]
    model, asked = masked_bert(), TASK.references(data, [])
    assert (
        TASK.quality("pseudo_perplexity", predict(model, data, 8), asked).n == len(asked.starts) - 1
    )


# --- training ----------------------------------------------------------------------------------


def test_training_masks_as_bert_does() -> None:
    data = encoded("train", count=400, text=" ".join(["good film was the bad story"] * 4))
    ids = np.array(data.rows["input_ids"][:])
    labels = np.array(data.rows["labels"][:])
    assert ids.shape == (400, 26)
    chosen = labels != -100
    assert set(chosen.sum(1)) == {round(0.15 * 24)}
    assert not chosen[:, [0, -1]].any()
    whole = np.where(chosen, labels, ids)
    assert (whole == whole[0]).all()
    masked, same = ids[chosen] == MASK, ids[chosen] == labels[chosen]
    assert masked.mean() == pytest.approx(0.8, abs=0.05)
    # A token at random may be the same or the mask: 1 of 25.
    assert same.mean() == pytest.approx(0.1 + 0.1 / 25, abs=0.04)
    again = encoded("train", count=400, text=" ".join(["good film was the bad story"] * 4))
    assert again.rows["labels"][:] == data.rows["labels"][:]


def test_the_teacher_is_followed_where_tokens_are_masked() -> None:
    data = encoded("train")
    ((_, batch),) = data.batches(12)
    student, teacher = masked_bert(seed=0), masked_bert(seed=1)
    with TeacherLoss(student, teacher, DistillationLossConfig(temperature=2.0)) as terms:
        assert terms.task == "masked"
        outputs = student(**{name: part for name, part in batch.items() if name != "labels"})
        found = terms(student, batch, outputs)["soft_loss"]
    chosen = batch["labels"] != -100
    with torch.no_grad():
        theirs = teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    own, other = (
        (logits[chosen] / 2).double().log_softmax(-1) for logits in (outputs.logits, theirs.logits)
    )
    expected = 4 * (other.exp() * (other - own)).sum(-1).mean().item()
    assert found.item() == pytest.approx(terms.weights["soft_loss"] * expected, rel=1e-4)


def test_every_step_of_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.jsonl", plain_rows(48))
    write_rows(tmp_path / "data" / "dev.jsonl", plain_rows(12, seed=1))
    steps = [
        {"finetune": {"epochs": 8, "learning_rate": 3e-3}},
        {"prune": {"sparsity": 0.3}},
        {"shrink": {"macs": 0.8, "min_heads": 1, "min_neurons": 8, "calibration_rows": 16}},
        {"distill": {"max_steps": 2}},
        {"quantize": {"backend": "torch"}},
    ]
    recipe = parse_recipe(
        {"name": "masked", "task": "fill-mask", "model": str(save_backbone(tmp_path / "model")),
         "data": str(tmp_path / "data"), "steps": steps, "save_models": True,
         "measure": {"also": ["accuracy"]}}
    )  # fmt: skip
    made = run(recipe, tmp_path / "out", draw=False)
    assert made.failures == []
    (row,) = made.rows
    assert (row["metric"], row["n"], row["mcnemar_p"]) == ("pseudo_perplexity", 12, None)
    assert row["low"] <= row["value"] <= row["high"]
    assert row["value"] < 30  # the untrained one is beyond 100
    assert 0 <= row["other_metrics"]["accuracy"] <= 1
    (folder,) = (found.parent for found in (tmp_path / "out").glob("**/hfcompress.json"))
    assert "pipeline_tag: fill-mask" in (folder / "README.md").read_text()
    fill: Any = hfcompress.load(folder)
    expected = fill("a [MASK] film")
    printed = run_fresh(folder / "example.py", "a [MASK] film").splitlines()
    assert [line.split()[1] for line in printed] == [one["token_str"] for one in expected]
    assert [line.split()[0] for line in printed] == [f"{one['score']:.4f}" for one in expected]
    assert main(["predict", str(folder), "a [MASK] film", "[MASK] [MASK]"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], len(lines)) == ("a [MASK] film", 1 + 5 + 1 + 10)
    assert (
        lines[1]
        == f"  {expected[0]['token_str']} {expected[0]['score']:.4f}  " + (expected[0]["sequence"])
    )


# --- folders -----------------------------------------------------------------------------------

TEXTS = ["a [MASK] film", "the [MASK] was [MASK]", "good good good music is [MASK] and warm"]


@pytest.mark.parametrize(
    ("backend", "mode"),
    [
        ("onnxruntime", "none"),
        ("openvino", "none"),
        ("torch", "dynamic"),
        ("onnxruntime", "dynamic"),
    ],
)
@pytest.mark.usefixtures("shared_exports")
def test_folders_answer_as_the_pipeline(tmp_path: Path, backend: str, mode: str) -> None:
    pytest.importorskip(backend)
    model, tokenizer = masked_bert(), tiny_tokenizer()
    narrow = {"reduce_range": True} if (backend, mode) == ("onnxruntime", "dynamic") else {}
    config = QuantizationConfig.from_dict({"backend": backend, "mode": mode, **narrow})
    folder = quantize(model, config).save(tmp_path / "folder", tokenizer)
    fill: Any = hfcompress.load(folder)
    if mode == "dynamic":
        kind: Any = AutoModelForMaskedLM if backend == "torch" else None
        model = kind.from_pretrained(folder) if kind else model
    ask: Any = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=25)
    exact = mode == "none" or backend == "torch"
    for text in TEXTS:
        own, theirs = (_by_token(answer) for answer in (fill(text, top_k=25), ask(text)))
        assert own.keys() == theirs.keys()
        for key, one in own.items():
            assert {**one, "score": 0} == {**theirs[key], "score": 0}
            assert one["score"] == pytest.approx(theirs[key]["score"], abs=1e-4 if exact else 0.1)
    many = fill(TEXTS, top_k=25, batch_size=2)
    for text, found in zip(TEXTS, many, strict=True):
        alone, together = _by_token(fill(text, top_k=25)), _by_token(found)
        for key, one in alone.items():
            assert one["sequence"] == together[key]["sequence"]
            # int8 has one scale for the activations of a batch.
            assert one["score"] == pytest.approx(
                together[key]["score"], abs=1e-4 if mode == "none" else 0.1
            )
    assert fill(TEXTS[:1]) == [fill(TEXTS[0])]
    best = fill(TEXTS[0], targets=["story", "plot"])
    assert {one["token_str"] for one in best} == {"story", "plot"}


def _by_token(answer: Any) -> dict[tuple[int, int], Any]:
    places = answer if isinstance(answer[0], list) else [answer]
    return {(n, one["token"]): one for n, place in enumerate(places) for one in place}


def test_refuses_what_cannot_be_filled(tmp_path: Path) -> None:
    folder = quantize(masked_bert(), QuantizationConfig(backend="torch")).save(
        tmp_path / "folder", tiny_tokenizer()
    )
    fill: Any = hfcompress.load(folder)
    with pytest.raises(
        DataError, match=r"example 1 has no \[MASK\] in its first 64 tokens; write it"
    ):
        fill(["a [MASK]", "a film"])
    with pytest.raises(DataError, match="example 0 is 3; give a text"):
        fill([3])
    with pytest.raises(DataError, match="got no text"):
        fill([])
    with pytest.raises(ConfigError, match="top_k is 0"):
        fill("a [MASK]", top_k=0)


# --- models and data that do not fit -----------------------------------------------------------


def test_finds_the_task_by_synonym_and_by_the_head() -> None:
    assert find_task("masked-lm") is TASK
    assert (
        infer_task(masked_bert().config.__class__(architectures=["BertForMaskedLM"]), "m") is TASK
    )


def test_a_model_of_another_task_names_its_own(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    data = write_rows(tmp_path / "texts.jsonl", plain_rows(24))
    asked = {"name": "other", "task": "fill-mask", "model": str(tmp_path / "model"),
             "data": str(data), "steps": [{"prune": {"sparsity": 0.5}}]}  # fmt: skip
    with pytest.raises(
        ModelError, match="whose head answers text-classification and not fill-mask"
    ):
        run(parse_recipe(asked), draw=False)


def test_refuses_tokenizers_and_columns_that_do_not_fit() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.mask_token = None
    found = examples()
    with pytest.raises(ModelError, match="has no mask token"):
        TASK.encode(found, found.eval, tokenizer, None)
    pairs = Dataset.from_list([{"sentence1": "a film", "sentence2": "a plot"}])
    with pytest.raises(
        DataError, match=r"one column of text and finds sentence1 and sentence2; wr"
    ):
        TASK.load(DataConfig(path="data"), need_train=False, splits={"train": pairs})
    bart = BertConfig(is_encoder_decoder=True)
    with pytest.raises(ModelError, match="is an encoder-decoder; fill-mask takes encoders"):
        TASK.check_head(bart, "bart")
    data = encoded()
    batch = data.collate([next(row for row in data.rows if max(row["labels"]) >= 20)])
    with pytest.raises(ModelError, match=r"the tokenizer has the token .* and the model scores 20"):
        data.counted(np.zeros((*batch["labels"].shape, 20), np.float32), batch)


def test_empty_texts_are_left_out_and_a_lone_split_is_divided(tmp_path: Path) -> None:
    rows = [*plain_rows(20), {"text": "  "}, {"text": ""}]
    write_rows(tmp_path / "texts.jsonl", rows)
    found = TASK.load(DataConfig(path=str(tmp_path / "texts.jsonl")), need_train=True)
    assert found.train is not None
    assert (len(found.train), len(found.eval)) == (16, 4)
    assert found.dropped == {"eval: empty text": 2}
    lines = tmp_path / "texts.txt"
    lines.write_text("\n".join(row["text"] for row in rows))
    assert len(TASK.load(DataConfig(path=str(lines)), need_train=False).eval) == 20
