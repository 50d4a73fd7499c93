"""Other rows, students, tasks and ways to train."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hfcompress.distillation.arguments import DistillationArguments
from hfcompress.distillation.losses import soft_loss
from hfcompress.distillation.teacher_outputs import TeacherOutputs
from hfcompress.distillation.trainer import DistillationTrainer
from hfcompress.errors import ModelError
from hfcompress.pruning.callback import PruningCallback
from hfcompress.pruning.training_config import PruningTrainingConfig
from hfcompress.training.hard_loss import hard_loss
from tests.distillation.training import ALL_TERMS, arguments, distill, logged, weights
from tests.distillation.two_processes import run as run_two_processes
from tests.fresh_process import run_ranks
from tests.tiny_models import NO_DROPOUT, ConvStudent, sharp_bert, span_bert, span_rows, text_rows


def test_rows_find_their_outputs_whatever_the_order(tmp_path: Path) -> None:
    """Kept outputs by the column ``row``, through column removal, shuffling and two epochs."""
    teacher, data = sharp_bert(1), text_rows()
    with torch.no_grad():
        batch = {name: torch.stack([row[name] for row in data]) for name in data[0]}
        outputs = teacher(**batch, output_hidden_states=True)

    class Kept:
        def lookup(self, numbers: Tensor) -> TeacherOutputs:
            states = enumerate(outputs.hidden_states[1:])
            return TeacherOutputs(
                outputs.logits[numbers], hidden_states={n: s[numbers] for n, s in states}
            )

    columns = {name: [row[name].tolist() for row in data] for name in data[0]}
    unused = {"text": ["a sentence"] * len(data)}
    numbered = Dataset.from_dict({**columns, **unused, "row": range(len(data))})
    given: dict[str, Any] = {"hidden_weight": 1.0, "layer_map": {0: 0, 1: 1}, "max_steps": 16}
    kept = distill(tmp_path, teacher=Kept(), data=numbered.shuffle(seed=5), **given)
    live = distill(tmp_path, teacher=sharp_bert(1), data=numbered.shuffle(seed=5), **given)
    assert logged(kept) == pytest.approx(logged(live), rel=1e-5)
    # Kept layers that are as many as the student's are followed in order.
    Kept.hidden_layers = (0, 1)  # type: ignore[attr-defined]
    del given["layer_map"]
    in_order = distill(tmp_path, teacher=Kept(), data=numbered.shuffle(seed=5), **given)
    assert logged(in_order) == logged(kept)


def test_a_teacher_with_its_own_tokens_reads_its_own_columns(tmp_path: Path) -> None:
    data = [
        {
            **row,
            "teacher_input_ids": row["input_ids"].flip(0),
            "teacher_attention_mask": row["attention_mask"].flip(0),
        }
        for row in text_rows()
    ]
    seen: list[set[str]] = []

    def teacher(batch: Any) -> Tensor:
        seen.append(set(batch))
        assert not torch.equal(batch["input_ids"], batch["input_ids"].flip(1))
        return torch.zeros(4, 2)

    distill(tmp_path, teacher=teacher, data=data)
    assert seen == [{"input_ids", "attention_mask"}] * 6


def test_a_student_of_another_kind_learns_from_labels_and_teacher(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "max_steps": 60, "per_device_train_batch_size": 8,
        "options": {"eval_dataset": text_rows(8)},
    }  # fmt: skip
    labels = distill(tmp_path, ConvStudent(), alpha=0.0, **given)
    assert labels.evaluate()["eval_loss"] < 0.7 * logged(labels)[0]
    teacher = distill(tmp_path, ConvStudent(), alpha=1.0, **given)
    assert sum(logged(teacher)[-4:]) < 0.7 * sum(logged(teacher)[:4])


def test_with_alpha_1_rows_need_no_labels(tmp_path: Path) -> None:
    data = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in text_rows()]
    trainer = distill(tmp_path, data=data, alpha=1.0)
    assert logged(trainer) == pytest.approx(logged(trainer, "soft_loss"))
    assert "hard_loss" not in trainer.state.log_history[0]


def test_batches_without_any_label_learn_from_the_teacher_only(tmp_path: Path) -> None:
    data = text_rows()
    for row in data:
        row["labels"] = torch.tensor(-100)
    trainer = distill(tmp_path, data=data, alpha=0.25)
    assert logged(trainer) == pytest.approx([0.25 * v for v in logged(trainer, "soft_loss")])


def test_evaluation_is_that_of_the_plain_trainer(tmp_path: Path) -> None:
    data = [{**row, "row": torch.tensor(n)} for n, row in enumerate(text_rows(8))]

    def no_teacher(batch: Any) -> Tensor:
        raise AssertionError("evaluation asks no teacher")

    student = sharp_bert(0)
    trainer = distill(
        tmp_path, student, teacher=lambda batch: torch.zeros(len(batch["row"]), 2), data=data,
        options={"eval_dataset": data},
    )  # fmt: skip
    trainer.teaching._pairs[0].teacher.function = no_teacher  # type: ignore[attr-defined]
    expected = Trainer(
        model=student, args=TrainingArguments(**arguments(tmp_path)), eval_dataset=text_rows(8)
    )
    assert trainer.evaluate()["eval_loss"] == expected.evaluate()["eval_loss"]
    predicted: list[Any] = [
        part.predict(rows_of).predictions  # type: ignore[arg-type]
        for part, rows_of in ((trainer, data), (expected, text_rows(8)))
    ]
    assert (predicted[0] == predicted[1]).all()


def test_it_prunes_while_it_distills(tmp_path: Path) -> None:
    callback = PruningCallback(PruningTrainingConfig(sparsity=0.6, frequency=2))
    trainer = distill(
        tmp_path, teacher=sharp_bert(1, width=24), options={"callbacks": [callback]}, max_steps=12,
        hidden_weight=1.0,
    )  # fmt: skip
    assert callback.sparsity == pytest.approx(0.6, abs=1e-2)
    dense = trainer.model.get_parameter("bert.encoder.layer.0.output.dense.weight")  # type: ignore[union-attr]
    assert (dense == 0).float().mean() == pytest.approx(0.6, abs=0.05)
    assert "hidden_loss" in trainer.state.log_history[0]


def test_bf16_trains_on_what_the_layers_say(tmp_path: Path) -> None:
    fine, coarse = (distill(tmp_path, bf16=flag, **ALL_TERMS) for flag in (False, True))
    assert logged(coarse) == pytest.approx(logged(fine), rel=0.1)
    assert logged(coarse) != logged(fine)


def test_reentrant_checkpointing_would_hide_the_layers(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="carry no gradient; with gradient checkpointing"):
        distill(
            tmp_path, value_weight=1.0, activation_checkpointing=True,
            activation_checkpointing_kwargs={"use_reentrant": True},
        )  # fmt: skip


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    given: dict[str, Any] = {**ALL_TERMS, "alpha": 0.5}
    whole = distill(tmp_path, sharp_bert(0, **NO_DROPOUT), **given)
    checkpointed = distill(
        tmp_path, sharp_bert(0, **NO_DROPOUT), activation_checkpointing=True, **given
    )
    torch.testing.assert_close(weights(checkpointed), weights(whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio"])
def test_trackers_get_the_parts(tmp_path: Path, tracker: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    pytest.importorskip(tracker)
    distill(tmp_path, report_to=[tracker])
    folder = tmp_path / ("logs" if tracker == "tensorboard" else "trackio")
    assert any(b"soft_loss" in file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_question_answering_leaves_padding_out(tmp_path: Path) -> None:
    student, teacher, data = span_bert(0, **NO_DROPOUT), span_bert(1), span_rows()
    trainer = distill(tmp_path, student, teacher, data, max_steps=1, learning_rate=0.0,
                      train_sampling_strategy="sequential")  # fmt: skip
    batch = {k: torch.stack([row[k] for row in data[:4]]) for k in ("input_ids", "attention_mask")}
    student.train(False)
    mine, theirs = (
        torch.stack([out.start_logits, out.end_logits], 1)
        for out in (student(**batch), teacher(**batch))
    )
    assert trainer.teaching.task == "spans"
    expected = soft_loss(mine, theirs, 4.0, "spans", batch["attention_mask"])
    assert logged(trainer, "soft_loss")[0] == pytest.approx(expected.item(), rel=1e-4)
    assert expected != soft_loss(mine, theirs, 4.0, "spans")
    answers = torch.tensor([[1, 2]] * 4)
    hard = hard_loss(mine, answers, "spans").item()
    assert logged(trainer, "hard_loss")[0] == pytest.approx(hard, rel=1e-4)


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
def test_labels_that_are_numbers_say_the_task(tmp_path: Path, kind: str) -> None:
    data = text_rows()
    for row in data:
        row["labels"] = torch.stack([row["labels"], 1 - row["labels"]]).float()
        if kind == "regression":
            row["labels"] = row["labels"][:1]
    labels = {"num_labels": 1} if kind == "regression" else {}
    trainer = distill(tmp_path, sharp_bert(0, **labels), sharp_bert(1, **labels), data, max_steps=3)
    assert trainer.teaching.task == kind


class TwoHeads(nn.Module):
    """A wrapper that gives logits in a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = sharp_bert(0)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Any = None) -> Any:
        outputs = self.inner(input_ids, attention_mask, labels=labels)
        given = {"logits": outputs.logits}
        return given if labels is None else {"loss": outputs.loss, **given}


def test_each_training_of_a_model_init_starts_anew(tmp_path: Path) -> None:
    """As in a hyperparameter search: the layers of the new student are the ones compared."""
    made: list[Any] = []

    def model_init() -> Any:
        made.append(sharp_bert(0))
        return made[-1]

    trainer = DistillationTrainer(
        model_init=model_init, teacher=sharp_bert(1, width=24), train_dataset=text_rows(),
        args=DistillationArguments(**arguments(tmp_path, **ALL_TERMS)),
    )  # fmt: skip
    losses = []
    for _ in range(2):
        trainer.train()
        losses.append(logged(trainer))
    assert len(made) == 3  # one to look at, and one for each training
    assert losses[0] == losses[1]
    assert not any(module._forward_hooks for module in made[-1].modules())


def test_a_wrapped_student_is_the_same_student(tmp_path: Path) -> None:
    wrapped, bare = distill(tmp_path, TwoHeads()), distill(tmp_path, sharp_bert(0))
    assert logged(wrapped) == pytest.approx(logged(bare), rel=1e-6)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Uneven shares of tokens and labels, projections and an accumulated update among them."""
    run_ranks(Path(__file__).with_name("two_processes.py"), str(tmp_path))
    first, second = (load_file(tmp_path / f"process{number}of2") for number in range(2))
    alone = run_two_processes(tmp_path / "alone", batch_size=4)
    assert first.keys() == second.keys() == alone.keys()
    assert any(name.startswith("projection") for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name])
        torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-5)
