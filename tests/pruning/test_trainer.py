from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import HfArgumentParser, Trainer, TrainingArguments

from hfcompress.errors import ConfigError
from hfcompress.pruning.trainer import PruningArguments, PruningTrainer
from hfcompress.pruning.training_config import PruningTrainingConfig

MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make(make_trainer: MakeTrainer) -> Callable[..., PruningTrainer]:
    def build(loss_terms: object = None, **arguments: object) -> PruningTrainer:
        trainer = make_trainer(
            trainer_class=PruningTrainer,
            arguments_class=PruningArguments,
            trainer_options={"loss_terms": loss_terms},
            **{"pruning_sparsity": 0.6, "pruning_frequency": 2, **arguments},
        )
        assert isinstance(trainer, PruningTrainer)
        return trainer

    return build


def weights(trainer: Trainer) -> torch.Tensor:
    assert isinstance(trainer.model, nn.Module)
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def logit_penalty(model: nn.Module, inputs: Mapping[str, Any], outputs: Any) -> dict[str, Any]:
    return {"penalty": outputs.logits.square().mean()}


def test_the_arguments_are_the_fields_of_the_config() -> None:
    names = {f.name for f in fields(PruningArguments)} - {f.name for f in fields(TrainingArguments)}
    expected = {f"pruning_{name}" for name in PruningTrainingConfig.model_fields}
    assert names == expected | {"task_loss_weight"}


def test_the_arguments_parse_from_a_command_line(tmp_path: Path) -> None:
    parser = HfArgumentParser(PruningArguments)  # type: ignore[arg-type]
    line = ["--output_dir", str(tmp_path), "--pruning_sparsity", "0.7"]
    (args,) = parser.parse_args_into_dataclasses([*line, "--pruning_targets", "query", "key"])
    config = args.pruning_config()
    assert (config.sparsity, config.targets) == (0.7, ("query", "key"))
    assert "share of the target weights" in parser.format_help()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs the field 'sparsity'"),
        ({"pruning_sparsity": 1.5}, r"PruningArguments\.sparsity should be less than 1"),
        ({"pruning_sparsity": 0.5, "task_loss_weight": -1.0}, "task_loss_weight"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        PruningArguments(output_dir=str(tmp_path), use_cpu=True, **arguments)


def test_plain_training_arguments_are_refused(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ConfigError, match="needs PruningArguments"):
        make_trainer(trainer_class=PruningTrainer)


def test_it_prunes_and_logs_the_sparsity(make: Callable[..., PruningTrainer]) -> None:
    trainer = make(logging_steps=5)
    trainer.train()
    assert trainer.pruning.sparsity == pytest.approx(0.6, abs=1e-3)
    logged = [row["sparsity"] for row in trainer.state.log_history if "loss" in row]
    assert logged == sorted(logged)
    assert logged[-1] == pytest.approx(0.6, abs=1e-3)


def test_loss_terms_change_the_result_and_are_logged(make: Callable[..., PruningTrainer]) -> None:
    plain, with_term = make(logging_steps=5), make(logit_penalty, logging_steps=5)
    without_task = make(logit_penalty, logging_steps=5, task_loss_weight=0.0)
    results = []
    for trainer in (plain, with_term, without_task):
        trainer.train()
        results.append(weights(trainer))
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[1], results[2])
    rows = [row for row in with_term.state.log_history if "loss" in row]
    assert len(rows) == 4
    for row in rows:
        assert row["loss"] == pytest.approx(row["task_loss"] + row["penalty"], rel=1e-3)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_added_term_counts_the_same_however_batches_are_accumulated(
    accumulation: int, make: Callable[..., PruningTrainer]
) -> None:
    def first_gradient(steps: int) -> torch.Tensor:
        trainer = make(
            logit_penalty,
            task_loss_weight=0.0,
            max_steps=1,
            gradient_accumulation_steps=steps,
            per_device_train_batch_size=8 // steps,
            optim="sgd",
            learning_rate=1.0,
            weight_decay=0.0,
            max_grad_norm=0.0,
            pruning_schedule="one_shot",
            pruning_frequency=10,
            pruning_warmup=1.0,
            pruning_targets=["key"],
        )
        trainer.model.eval()  # type: ignore[union-attr]
        for module in trainer.model.modules():  # type: ignore[union-attr]
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        before = trainer.model.classifier.weight.detach().clone()  # type: ignore[union-attr, operator]
        trainer.train()
        return before - trainer.model.classifier.weight.detach()  # type: ignore[union-attr, operator]

    torch.testing.assert_close(first_gradient(accumulation), first_gradient(1))


def test_it_resumes_from_a_folder_that_was_moved(
    make: Callable[..., PruningTrainer], tmp_path: Path
) -> None:
    whole = make(save_strategy="steps", save_steps=10)
    whole.train()
    moved = tmp_path / "moved"
    (tmp_path / "out" / "checkpoint-10").rename(moved)
    resumed = make(folder="other")
    resumed.train(resume_from_checkpoint=str(moved))
    assert torch.equal(weights(whole), weights(resumed))


def test_without_the_task_loss_rows_need_no_labels(make: Callable[..., PruningTrainer]) -> None:
    trainer = make(logit_penalty, task_loss_weight=0.0, logging_steps=10)
    rows = [{"input_ids": row["input_ids"]} for row in trainer.train_dataset]  # type: ignore[union-attr]
    trainer.train_dataset = rows
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert logged[-1]["loss"] == pytest.approx(logged[-1]["penalty"], rel=1e-3)


def test_no_loss_at_all_is_refused(make: Callable[..., PruningTrainer]) -> None:
    with pytest.raises(ConfigError, match="leaves no loss"):
        make(task_loss_weight=0.0)


def test_a_function_prunes_for_method_custom(make_trainer: MakeTrainer) -> None:
    def drop_all(model: nn.Module, sparsity: float) -> None:
        model.get_parameter("bert.encoder.layer.0.output.dense.weight").data.zero_()

    trainer = make_trainer(
        trainer_class=PruningTrainer,
        arguments_class=PruningArguments,
        trainer_options={"prune": drop_all},
        pruning_method="custom",
        pruning_sparsity=0.5,
    )
    trainer.train()
    assert isinstance(trainer, PruningTrainer)
    assert trainer.pruning.sparsity == pytest.approx(1 / 8)
