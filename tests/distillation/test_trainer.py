import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from hfcompress.distillation.trainer import PROJECTIONS_FILE, DistillationTrainer
from hfcompress.errors import SourceError
from tests.distillation.training import ALL_TERMS, arguments, distill, logged, weights
from tests.tiny_models import (
    NO_DROPOUT,
    ConvStudent,
    sharp_bert,
    span_bert,
    span_rows,
    text_rows,
    token_bert,
    token_rows,
)


def plain(folder: Path, student: Any = None, data: Any = None, **given: Any) -> Trainer:
    trainer = Trainer(
        model=sharp_bert(0) if student is None else student,
        args=TrainingArguments(**arguments(folder, **given)),
        train_dataset=text_rows() if data is None else data,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("given", [{}, {"label_smoothing_factor": 0.1}, {"bf16": True}])
def test_with_alpha_0_it_is_the_plain_trainer(
    tmp_path: Path, tokens: bool, given: dict[str, Any]
) -> None:
    student, data = (token_bert, token_rows()) if tokens else (sharp_bert, text_rows())
    expected = plain(tmp_path, student(0), data, max_steps=12, **given)
    found = distill(
        tmp_path, student(0), student(1), data, alpha=0.0, max_steps=12, **given
    )  # dropout is on: both draw the same numbers
    assert logged(found) == pytest.approx(logged(expected), abs=1e-6)
    torch.testing.assert_close(weights(found), weights(expected), rtol=0, atol=1e-6)


def test_the_parts_are_logged_and_add_up(tmp_path: Path) -> None:
    trainer = distill(
        tmp_path, alpha=0.3, logging_steps=3, gradient_accumulation_steps=2, **ALL_TERMS
    )
    lines = [row for row in trainer.state.log_history if "loss" in row]
    assert len(lines) == 2
    for line in lines:
        parts = [
            ALL_TERMS[f"{n}_weight"] * line[f"{n}_loss"]
            for n in ("logits", "hidden", "attention", "value")
        ]
        total = 0.7 * line["hard_loss"] + 0.3 * line["soft_loss"] + sum(parts)
        assert line["loss"] == pytest.approx(total, rel=1e-5)


def test_logs_are_means_over_the_updates_since_the_last_one(tmp_path: Path) -> None:
    each, every_third = (distill(tmp_path, logging_steps=steps) for steps in (1, 3))
    for name in ("loss", "soft_loss", "hard_loss"):
        values = logged(each, name)
        means = [sum(values[:3]) / 3, sum(values[3:]) / 3]
        assert logged(every_third, name) == pytest.approx(means, rel=1e-5)


@pytest.mark.parametrize("kind", ["rows", "unlabelled rows", "tokens", "spans", "module"])
def test_two_accumulated_batches_are_one_large_batch(tmp_path: Path, kind: str) -> None:
    """Batches differ in rows with labels and in tokens, so that a mean of means is wrong."""

    def trained(batch: int, accumulated: int) -> DistillationTrainer:
        student: Any = (
            token_bert(0, **NO_DROPOUT) if kind == "tokens" else sharp_bert(0, **NO_DROPOUT)
        )
        teacher = token_bert(1) if kind == "tokens" else sharp_bert(1)
        data = token_rows(8) if kind == "tokens" else text_rows(8)
        given: dict[str, Any] = {**ALL_TERMS, "hidden_distance": "mse"}
        if kind == "unlabelled rows":
            for row in data[:3]:
                row["labels"] = torch.tensor(-100)
        if kind == "spans":
            student, teacher, data = span_bert(0, **NO_DROPOUT), span_bert(1), span_rows(8)
        if kind == "module":
            student, given = ConvStudent(), {"logits_weight": 0.5}
        return distill(
            tmp_path, student, teacher, data, max_steps=1, optim="sgd", alpha=0.4,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated,
            train_sampling_strategy="sequential", learning_rate=0.1, max_grad_norm=0.0, **given,
        )  # fmt: skip

    whole, halves, quarters = trained(8, 1), trained(4, 2), trained(2, 4)
    for parts in (halves, quarters):
        torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-5, atol=1e-6)
        for name in logged_names(whole):
            assert logged(parts, name) == pytest.approx(logged(whole, name), rel=1e-4)


def logged_names(trainer: DistillationTrainer) -> list[str]:
    return [name for name in trainer.state.log_history[0] if name.endswith("loss")]


def test_a_last_update_of_fewer_batches_counts_what_it_has(tmp_path: Path) -> None:
    """Five rows in batches of two, two batches an update: the second update is one row."""

    def first_two(accumulated: int) -> list[float]:
        trainer = distill(
            tmp_path, sharp_bert(0, **NO_DROPOUT), data=text_rows(5), max_steps=2, alpha=1.0,
            optim="sgd",
            per_device_train_batch_size=4 // accumulated, gradient_accumulation_steps=accumulated,
            train_sampling_strategy="sequential",
        )  # fmt: skip
        return logged(trainer)

    assert first_two(2) == pytest.approx(first_two(1), rel=1e-4)


SETTINGS: dict[str, dict[str, Any]] = {
    "alpha": {"alpha": 0.9},
    "temperature": {"temperature": 1.0},
    "alpha_end": {"alpha_end": 1.0, "schedule": "linear"},
    "temperature_end": {"temperature_end": 1.0, "schedule": "linear"},
    "schedule": {"temperature_end": 1.0, "schedule": "cosine"},
    "logits_weight": {"logits_weight": 0.0},
    "hidden_weight": {"hidden_weight": 0.0},
    "attention_weight": {"attention_weight": 0.0},
    "value_weight": {"value_weight": 0.0},
    "hidden_distance": {"hidden_distance": "patience"},
    "relation_heads": {"relation_heads": 1},
    "layer_map": {"layer_map": {1: 0}},
    "teacher_weights": {"teacher_weights": [3.0, 1.0]},
    "teacher_precision": {"teacher_precision": "bf16"},
    "task": {"task": "regression"},
}


def test_every_argument_changes_the_result(tmp_path: Path) -> None:
    from hfcompress.distillation.config import DistillationTrainingConfig

    of_vectors = {"similarity_weight", "ranking_weight"}  # test_embedding_students.py has these
    of_passages = {"margin_weight", "listwise_weight"}  # and test_rerankers.py these
    named = set(DistillationTrainingConfig.model_fields) - of_vectors - of_passages
    assert set(SETTINGS) == named
    results = {}
    for name, changed in [("none", {}), *SETTINGS.items()]:
        teachers = [sharp_bert(1), sharp_bert(2)]
        data: Any = text_rows()
        if name == "task":  # two numbers to fit
            for row in data:
                row["labels"] = torch.ones(2) * row["labels"]
        student = sharp_bert(0, problem_type="regression" if name == "task" else None)
        trainer = distill(
            tmp_path, student, teachers, data, max_steps=4, **{**ALL_TERMS, **changed}
        )
        results[name] = float(weights(trainer).double().sum())
    assert len(set(results.values())) == len(results), results


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_temperature_and_alpha_follow_the_schedule(tmp_path: Path, kind: str) -> None:
    seen: list[float] = []

    class Watching(DistillationTrainer):
        def soft_loss(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
            seen.append(self.teaching.loss.temperature)
            return super().soft_loss(student, teacher, mask)

    trainer = distill(
        tmp_path, trainer=Watching, max_steps=5, schedule=kind, temperature=8.0,
        temperature_end=2.0, alpha=0.5, alpha_end=1.0,
    )  # fmt: skip
    done = [0, 0.25, 0.5, 0.75, 1] if kind == "linear" else [0, 0.1464466, 0.5, 0.8535534, 1]
    assert seen == pytest.approx([8.0 - 6.0 * part for part in done])
    assert logged(trainer, "temperature") == pytest.approx(seen)
    assert logged(trainer, "alpha") == pytest.approx([0.5 + 0.5 * part for part in done])


def test_resumed_in_the_middle_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        **ALL_TERMS, "save_strategy": "steps", "save_steps": 4, "max_steps": 8,
        "schedule": "linear", "temperature_end": 1.0, "relation_heads": 2,
    }  # fmt: skip
    whole = distill(tmp_path / "whole", teacher=sharp_bert(1, width=24), **given)
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    resumed = distill(
        tmp_path / "resumed", teacher=sharp_bert(1, width=24), resume=str(checkpoint), **given
    )
    assert torch.equal(weights(whole), weights(resumed))
    assert logged(resumed)[-4:] == logged(whole)[-4:]
    layers = (whole.teaching.layers, resumed.teaching.layers)
    first, second = (torch.cat([p.flatten() for p in part.parameters()]) for part in layers)
    assert torch.equal(first, second)
    # The projections lie beside the student, which loads as any other.
    assert (checkpoint / PROJECTIONS_FILE).is_file()
    loaded = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    assert {name for name, _ in loaded.named_parameters()} == {
        name
        for name, _ in whole.model.named_parameters()  # type: ignore[union-attr]
    }
    (checkpoint / PROJECTIONS_FILE).unlink()
    with pytest.raises(SourceError, match=f"{PROJECTIONS_FILE} is missing"):
        distill(tmp_path / "no", teacher=sharp_bert(1, width=24), resume=str(checkpoint), **given)


def test_projections_learn_and_leave_the_student_alone(tmp_path: Path) -> None:
    student = sharp_bert(0)
    names = [name for name, _ in student.named_modules()]
    given: dict[str, Any] = {"hidden_weight": 1.0, "alpha": 0.0, "hidden_distance": "mse"}
    trainer = distill(tmp_path, student, sharp_bert(1, width=24), max_steps=30, **given)
    shapes = [tuple(p.shape) for p in trainer.teaching.layers.parameters()]
    assert shapes == [(24, 16), (24, 16)]
    assert logged(trainer, "hidden_loss")[-1] < 0.7 * logged(trainer, "hidden_loss")[0]
    assert [name for name, _ in student.named_modules()] == names
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in student.modules()
    )
    start = distill(
        tmp_path, sharp_bert(0), sharp_bert(1, width=24), max_steps=1, **given
    ).teaching.layers
    assert not torch.equal(next(start.parameters()), next(trainer.teaching.layers.parameters()))
    again = trainer.train()  # a second training goes on with the same projections
    assert again.global_step == 30
    assert logged(trainer, "hidden_loss")[-1] < logged(trainer, "hidden_loss")[0]


def test_the_teacher_watches_in_evaluation_mode_and_stays_as_it_was(tmp_path: Path) -> None:
    teacher = sharp_bert(1).train()
    before = copy.deepcopy(teacher.state_dict())
    seen: list[tuple[bool, bool, torch.device]] = []
    teacher.classifier.register_forward_hook(
        lambda module, inputs, output: seen.append(
            (teacher.training, output.requires_grad, output.device)
        )
    )
    trainer = distill(tmp_path, teacher=teacher, **ALL_TERMS)
    assert set(seen) == {(False, False, trainer.args.device)}
    assert len(seen) == 7  # a look at one row for the widths, and six updates
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert teacher.config._attn_implementation == "sdpa"


def test_a_teacher_on_another_device_comes_to_the_batch_and_goes_home(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    teacher = sharp_bert(1)
    seen: set[str] = set()
    teacher.classifier.register_forward_hook(
        lambda module, inputs, output: seen.add(output.device.type)
    )
    distill(tmp_path, teacher=teacher, use_cpu=False, **ALL_TERMS)
    assert seen == {"cuda"}
    assert {parameter.device.type for parameter in teacher.parameters()} == {"cpu"}
