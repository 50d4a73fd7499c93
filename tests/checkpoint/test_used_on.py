"""A reloaded model is a model like any other: trained on, in a pipeline, pushed, exported."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification as AutoModelForText
from transformers import Trainer, TrainingArguments, pipeline

from hfcompress.checkpoint.record import METHOD
from hfcompress.models.loading import ModelConfig, load_model
from hfcompress.tasks.text_classification import TEXT_CLASSIFICATION
from tests.tiny_models import logits, shrinkable_batches, uneven_model, uneven_model_without_a_layer
from tests.tiny_tokenizers import tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


def rows() -> Dataset:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 60, (24, 6), generator=generator)
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": (ids[:, 0] % 3).tolist()})


def trainer(model: Any, folder: Path, steps: int) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_steps=3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    return Trainer(model=model, args=arguments, train_dataset=rows())


def test_training_on_resuming_and_reloading(tmp_path: Path) -> None:
    uneven_model("distilbert").save_pretrained(tmp_path / "start")
    model = AutoModelForText.from_pretrained(tmp_path / "start")
    before = model.distilbert.transformer.layer[1].ffn.lin1.weight.clone()
    trainer(model, tmp_path / "straight", 6).train()
    assert not torch.equal(model.distilbert.transformer.layer[1].ffn.lin1.weight, before)

    # Killed after three updates: another model, loaded from the checkpoint, goes on from there.
    checkpoint = tmp_path / "straight" / "checkpoint-3"
    resumed = AutoModelForText.from_pretrained(checkpoint)
    shutil.copytree(checkpoint, tmp_path / "resumed" / "checkpoint-3")
    trainer(resumed, tmp_path / "resumed", 6).train(resume_from_checkpoint=True)
    again = AutoModelForText.from_pretrained(tmp_path / "resumed" / "checkpoint-6")
    assert again.config.quantization_config["quant_method"] == METHOD
    batch = shrinkable_batches("distilbert")[0]
    assert torch.equal(logits(again, batch), logits(model.eval(), batch))


def test_a_model_shrunk_while_loaded_trains_and_saves_what_is_left(tmp_path: Path) -> None:
    model = uneven_model_without_a_layer("bert")
    trainer(model, tmp_path, 3).train()
    again = AutoModelForText.from_pretrained(tmp_path / "checkpoint-3")
    batch = shrinkable_batches("bert")[0]
    assert torch.equal(logits(again, batch), logits(model.eval(), batch))


def test_a_pipeline_runs_on_the_folder(tmp_path: Path) -> None:
    model = uneven_model("bert")
    model.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    texts = ["the film was good", "a dull plot"]
    found: Any = pipeline("text-classification", model=str(tmp_path), device="cpu")(texts)
    with torch.no_grad():
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        expected = model(**inputs).logits.softmax(-1).max(-1).values
    assert np.allclose([row["score"] for row in found], expected, atol=1e-6)


def test_a_recipe_starts_from_the_folder(tmp_path: Path) -> None:
    model = uneven_model("bert")
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    same = load_model(ModelConfig(path=str(tmp_path)), TEXT_CLASSIFICATION)
    assert not same.new_head
    loaded: Any = same.model
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)
    labels = ["one", "two", "three", "four", "five"]
    other = load_model(ModelConfig(path=str(tmp_path)), TEXT_CLASSIFICATION, labels)
    assert other.new_head
    loaded = other.model
    assert loaded.classifier.weight.shape == (5, 32)
    for name, tensor in model.bert.state_dict().items():
        assert torch.equal(loaded.bert.state_dict()[name], tensor), name


def test_what_push_to_hub_sends_loads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"

    def receive(self: Any, repo_id: str, operations: Any, **options: Any) -> None:
        for operation in operations:
            target = hub / repo_id / operation.path_in_repo
            target.parent.mkdir(parents=True, exist_ok=True)
            with operation.as_file() as file:
                target.write_bytes(file.read())

    def create(self: Any, repo_id: str, **options: Any) -> Any:
        return huggingface_hub.RepoUrl(f"https://huggingface.co/me/{repo_id}")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", receive)
    model = uneven_model("bert")
    model.push_to_hub("small")
    folder = hub / "me" / "small"
    again = AutoModelForText.from_pretrained(folder)
    batch = shrinkable_batches("bert")[0]
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert "hfcompress" in (folder / "README.md").read_text()


def test_it_exports_to_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    uneven_model("distilbert").save_pretrained(tmp_path)
    model = AutoModelForText.from_pretrained(tmp_path, attn_implementation="eager")
    batch = shrinkable_batches("distilbert")[0]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (), tmp_path / "model.onnx", kwargs=inputs, dynamo=True, verbose=False
        )
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    assert np.allclose(found, logits(model, batch), atol=1e-4)
