from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainerState,
)

from hfcompress.errors import ConfigError, SourceError, TargetError
from hfcompress.pruning.callback import STATE_FILE, PruningCallback
from hfcompress.pruning.training_config import PruningTrainingConfig
from tests.fresh_process import run_ranks

MakeTrainer = Callable[..., Trainer]
METHODS = ("magnitude", "movement", "soft_movement")


def pruning(**fields: object) -> PruningCallback:
    base: dict[str, object] = {"frequency": 2}
    if fields.get("method") == "soft_movement":
        base |= {"regularization": 4.0, "score_learning_rate": 0.2}
    else:
        base["sparsity"] = 0.6
    return PruningCallback(PruningTrainingConfig.from_dict({**base, **fields}))


def zeros(model: nn.Module, callback: PruningCallback) -> dict[str, torch.Tensor]:
    assert callback.masks is not None
    return {name: model.get_parameter(f"{name}.weight") == 0 for name in callback.masks.kept}


def assert_masks_hold(model: nn.Module, callback: PruningCallback) -> None:
    assert callback.masks is not None
    for name, zero in zeros(model, callback).items():
        assert torch.equal(zero, ~callback.masks.kept[name])


class WatchZeros(TrainerCallback):
    """Counts, after each step, zeros of the last step that came back to life."""

    def __init__(self, pruning: PruningCallback) -> None:
        self.pruning = pruning
        self.returned = 0
        self.steps_watched = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        masks = self.pruning.masks
        assert masks is not None
        if state.global_step > masks.schedule.last_update:
            self.steps_watched += 1
        for name, kept in masks.kept.items():
            weight = kwargs["model"].get_parameter(f"{name}.weight")
            self.returned += int(torch.count_nonzero(weight[~kept]))


# The name that all releases from 5.0 on know; newer ones prefer another.
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("method", "precision", "steps"),
    [("magnitude", "bf16", 200), ("movement", "fp16", 60), ("soft_movement", "bf16", 60)],
)
def test_zeros_hold_for_200_steps_with_everything_on(
    method: str, precision: str, steps: int, make_trainer: MakeTrainer
) -> None:
    callback = pruning(method=method)
    watch = WatchZeros(callback)
    trainer = make_trainer(
        callback,
        watch,
        max_steps=steps,
        **{precision: True},
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        max_grad_norm=0.5,
        optim="adamw_torch_fused",
    )
    model = trainer.model
    assert isinstance(model, nn.Module)
    trainer.train()
    assert watch.returned == 0
    assert watch.steps_watched == 0.3 * steps
    assert callback.sparsity > 0.3
    assert_masks_hold(model, callback)
    if method != "soft_movement":
        assert callback.sparsity == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_equals_an_uninterrupted_one(
    method: str, make_trainer: MakeTrainer
) -> None:
    whole = pruning(method=method, cooldown=0.1)
    first = make_trainer(whole, folder="whole", save_strategy="steps", save_steps=10)
    first.train()
    second_callback = pruning(method=method, cooldown=0.1)
    second = make_trainer(second_callback, folder="whole")
    second.train(resume_from_checkpoint=str(Path(str(first.args.output_dir)) / "checkpoint-10"))
    assert isinstance(first.model, nn.Module)
    assert isinstance(second.model, nn.Module)
    assert whole.masks is not None
    assert second_callback.masks is not None
    for name, value in whole.masks.state().items():
        assert torch.equal(value, second_callback.masks.state()[name]), name
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name


def test_resume_from_a_folder_that_was_moved(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    first = make_trainer(pruning(), save_strategy="steps", save_steps=10)
    first.train()
    moved = tmp_path / "moved"
    (Path(str(first.args.output_dir)) / "checkpoint-10").rename(moved)
    with pytest.raises(SourceError, match="resume_from"):
        make_trainer(pruning(), folder="new").train(resume_from_checkpoint=str(moved))
    callback = pruning()
    callback.resume_from = moved
    again = make_trainer(callback, folder="new")
    again.train(resume_from_checkpoint=str(moved))
    assert isinstance(again.model, nn.Module)
    assert_masks_hold(again.model, callback)


def test_resume_with_another_config_is_refused(make_trainer: MakeTrainer) -> None:
    make_trainer(pruning(), save_strategy="steps", save_steps=10).train()
    with pytest.raises(ConfigError, match="scope differ"):
        make_trainer(pruning(scope="global")).train(resume_from_checkpoint=True)


def test_the_checkpoint_is_an_ordinary_one(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    callback = pruning(method="movement")
    trainer = make_trainer(callback, save_strategy="steps", save_steps=20)
    names = set(BertForSequenceClassification(trainer.model.config).state_dict())  # type: ignore[union-attr, arg-type]
    trainer.train()
    folder = Path(str(trainer.args.output_dir)) / "checkpoint-20"
    assert (folder / STATE_FILE).is_file()
    assert set(load_file(folder / "model.safetensors")) == names
    assert_masks_hold(AutoModelForSequenceClassification.from_pretrained(folder), callback)


def test_custom_pruning_resumes_too(make_trainer: MakeTrainer) -> None:
    def prune_by_index(model: nn.Module, sparsity: float) -> None:
        weight = model.get_parameter("bert.encoder.layer.0.output.dense.weight").data
        weight.view(-1)[: round(sparsity * weight.numel())] = 0

    results = []
    for resume in (False, True):
        callback = pruning(method="custom", cooldown=0.1)
        callback.prune = prune_by_index
        trainer = make_trainer(callback, save_strategy="steps", save_steps=10)
        middle = str(Path(str(trainer.args.output_dir)) / "checkpoint-10")
        trainer.train(resume_from_checkpoint=middle if resume else None)
        assert isinstance(trainer.model, nn.Module)
        assert_masks_hold(trainer.model, callback)
        results.append(callback.sparsity)
    assert results[0] == results[1] > 0


def test_methods_schedules_and_scopes_keep_different_weights(make_trainer: MakeTrainer) -> None:
    variants: list[dict[str, object]] = [
        {}, {"method": "movement"}, {"scope": "global"}, {"schedule": "linear"},
        {"initial_sparsity": 0.5}, {"frequency": 5}, {"start": 5}, {"end": 17},
        {"warmup": 0.4}, {"cooldown": 0.1}, {"targets": ["query"]}, {"exclude": ["query"]},
        {"pattern": "2:4", "sparsity": None}, {"pattern": "4x1"}, {"sparsity": 0.61},
    ]  # fmt: skip
    results = []
    for fields in variants:
        callback = pruning(**fields)
        trainer = make_trainer(callback, learning_rate=0.1)
        trainer.train()
        assert isinstance(trainer.model, nn.Module)
        results.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    same = [
        (variants[a], variants[b])
        for a in range(len(results))
        for b in range(a)
        if torch.equal(results[a], results[b])
    ]
    assert same == []


@pytest.mark.parametrize(
    ("fields", "arguments", "error", "message"),
    [
        ({"targets": ["nothing"]}, {}, TargetError, "matches no module"),
        ({"end": 21}, {}, ConfigError, "ends at step 21, after training does"),
        ({"start": 30, "end": 40}, {}, ConfigError, "after training does"),
        ({"schedule": "one_shot", "frequency": 10, "start": 21}, {}, ConfigError, "after training"),
        (
            {},
            {
                "load_best_model_at_end": True,
                "eval_strategy": "steps",
                "save_strategy": "steps",
                "eval_steps": 10,
                "save_steps": 10,
            },
            ConfigError,
            "load_best_model_at_end",
        ),
    ],
)
def test_it_refuses_to_start(
    fields: dict[str, object],
    arguments: dict[str, object],
    error: type[Exception],
    message: str,
    make_trainer: MakeTrainer,
) -> None:
    options: dict[str, object] = {"eval_dataset": []} if arguments else {}
    with pytest.raises(error, match=message):
        make_trainer(pruning(**fields), trainer_options=options, **arguments).train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fp16": True, "max_grad_norm": 0.0}, "movement scores need unscaled gradients"),
        ({"deepspeed": "zero.json"}, "deepspeed and fsdp"),
        ({"fsdp": "full_shard"}, "deepspeed and fsdp"),
    ],
)
def test_training_arguments_under_which_masks_would_not_hold_are_refused(
    changes: dict[str, object], message: str, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer()
    for name, value in changes.items():  # set late: some cannot be made on every machine
        setattr(trainer.args, name, value)
    assert isinstance(trainer.model, nn.Module)
    callback, state = pruning(method="movement"), TrainerState(max_steps=20)
    with pytest.raises(ConfigError, match=message):
        callback.on_train_begin(trainer.args, state, trainer.control, trainer.model)


def test_a_dense_model_has_no_zeros_to_keep(make_trainer: MakeTrainer) -> None:
    callback = PruningCallback(PruningTrainingConfig(method="keep_zeros"))
    with pytest.raises(TargetError, match="would prune nothing"):
        make_trainer(callback).train()


def test_training_that_pruned_nothing_says_so(make_trainer: MakeTrainer) -> None:
    callback = pruning(method="soft_movement", regularization=0.0, score_learning_rate=1e-6)
    with pytest.warns(UserWarning, match="no weight pruned; raise 'regularization'"):
        make_trainer(callback).train()


def test_two_processes_hold_equal_masks(tmp_path: Path) -> None:
    run_ranks(Path(__file__).with_name("two_processes.py"), str(tmp_path), "movement")
    first, second = (load_file(tmp_path / f"process{number}of2") for number in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    masks = [value for name, value in first.items() if name.startswith("kept.")]
    assert 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks) == pytest.approx(
        0.7, abs=1e-3
    )
