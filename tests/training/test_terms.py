"""Terms beside Trainer's loss: their balance, logs, options, streams, optimizers and resumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from transformers import BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from hfcompress.distillation.arguments import DistillationArguments
from hfcompress.distillation.config import DistillationLossConfig
from hfcompress.distillation.teacher_loss import TeacherLoss
from hfcompress.distillation.trainer import DistillationTrainer
from hfcompress.errors import ConfigError, DataError, SourceError
from hfcompress.models.architectures import blocks, select_modules
from hfcompress.pruning.callback import PruningCallback
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.prune import prune
from hfcompress.pruning.trainer import PruningArguments, PruningTrainer
from hfcompress.pruning.training_config import PruningTrainingConfig
from hfcompress.training.outputs import token_mask
from hfcompress.training.shares import ItemCount
from tests.distillation.training import arguments, distill, logged, weights
from tests.tiny_models import NO_DROPOUT, ConvStudent, sharp_bert, text_rows, token_bert, token_rows
from tests.training.test_parity import SUBJECTS, LogitsOnly, rows_of

# peft reads names that transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

KEEP: dict[str, Any] = {"pruning_method": "keep_zeros", "pruning_may_be_dense": True}


def prune_with(
    folder: Path, model: Any, data: Any, terms: Any = None, options: Any = None, **given: Any
) -> PruningTrainer:
    trainer = PruningTrainer(
        model, PruningArguments(**arguments(folder, **{**KEEP, **given})), train_dataset=data,
        loss_terms=terms, **(options or {}),
    )  # fmt: skip
    trainer.train()
    return trainer


def lora(model: Any, task: str) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(task_type=task, target_modules=["query"]))


# --- the balance of losses ---------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [False, True])
def test_terms_of_pruning_keep_their_weight_in_accumulated_updates(
    tokens: bool, tmp_path: Path
) -> None:
    """Batches differ in their tokens, so that a mean of batch means is another one."""

    def trained(size: int, batches: int) -> PruningTrainer:
        make, data = (token_bert, token_rows(8)) if tokens else (sharp_bert, text_rows(8))
        student, teacher = make(0, **NO_DROPOUT), make(1, **NO_DROPOUT)
        config = DistillationLossConfig(hidden_weight=0.5, hidden_distance="mse")
        with TeacherLoss(student, teacher, config) as terms:
            return prune_with(
                tmp_path, student, data, terms, max_steps=1, optim="sgd", learning_rate=0.1,
                per_device_train_batch_size=size, gradient_accumulation_steps=batches,
                train_sampling_strategy="sequential", max_grad_norm=0.0,
            )  # fmt: skip

    whole, parts = trained(8, 1), trained(2, 4)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-5, atol=1e-6)
    for name in ("loss", "task_loss", "soft_loss", "hidden_loss"):
        assert logged(parts, name) == pytest.approx(logged(whole, name), rel=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("name", ["gpt2", "t5", "bert, masked"])
def test_language_models_follow_a_teacher_in_any_accumulation(
    name: str, alpha: float, tmp_path: Path
) -> None:
    subject = SUBJECTS[name]

    def trained(size: int) -> DistillationTrainer:
        torch.manual_seed(0)
        student, teacher = subject.make(), subject.make()
        return distill(
            tmp_path, student, teacher, rows_of(subject.rows), alpha=alpha, max_steps=2,
            per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, optim="sgd",
            train_sampling_strategy="sequential",
        )  # fmt: skip

    whole, parts = trained(8), trained(2)
    assert logged(whole, "soft_loss")[0] > 0
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("func", [False, True])
def test_a_term_of_the_callers_counts_once_in_an_update(func: bool, tmp_path: Path) -> None:
    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        logits = outputs if isinstance(outputs, Tensor) else outputs["logits"]
        total: Tensor = nn.functional.cross_entropy(logits, labels, reduction="sum")
        return total / float(num_items_in_batch)

    def penalty(model: nn.Module, inputs: Any, outputs: Any) -> dict[str, Tensor]:
        assert "labels" in inputs
        logits = outputs if isinstance(outputs, Tensor) else outputs["logits"]
        return {"penalty": logits.square().mean()}

    found = [
        prune_with(
            tmp_path, logits_model(), rows_of("images")[:8], penalty, max_steps=2, optim="sgd",
            per_device_train_batch_size=size, gradient_accumulation_steps=8 // size,
            train_sampling_strategy="sequential",
            options={"compute_loss_func": loss} if func else None,
        )
        for size in (8, 2)
    ]  # fmt: skip
    for name in ("loss", "task_loss", "penalty"):
        assert logged(found[1], name) == pytest.approx(logged(found[0], name), rel=1e-4)
    torch.testing.assert_close(weights(found[1]), weights(found[0]), rtol=1e-4, atol=1e-6)


def logits_model() -> nn.Module:
    torch.manual_seed(0)
    return LogitsOnly()


def test_an_item_count_knows_who_computed_with_it() -> None:
    count = ItemCount.of(torch.tensor(8.0))
    moved = count.to("cpu").clone()
    assert (moved.device, moved.dim(), count.reads) == (torch.device("cpu"), 0, [])
    quotient = torch.tensor(4.0) / moved
    assert (type(quotient), float(quotient)) == (Tensor, 0.5)
    assert count.reads
    number = ItemCount.of(3)
    assert (int(number), bool(number.reads)) == (3, True)


# --- padding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_padding_of_language_models_teaches_nothing(causal: bool, masked: bool) -> None:
    def model(seed: int) -> Any:
        torch.manual_seed(seed)
        made: Any = BertForMaskedLM(token_bert(seed).config)
        if causal:
            sizes = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)
            made = GPT2LMHeadModel(sizes)
        return made.eval()

    ids = torch.randint(5, 50, (3, 9), generator=torch.Generator().manual_seed(2))
    ids[:, 4:] = 0
    batch = {"input_ids": ids, "labels": ids.masked_fill(ids == 0, -100)}
    if masked:
        batch["attention_mask"] = (ids > 0).long()
    short = {name: value[:, :4] for name, value in batch.items()}
    student, teacher = model(0), model(1)
    if not causal and not masked:  # it would attend to the padding
        assert torch.equal(token_mask(student, batch), ids > 0)  # type: ignore[arg-type]
        return
    with TeacherLoss(student, teacher, DistillationLossConfig()) as terms:
        assert terms.task == ("tokens" if causal else "masked")
        found = []
        for part in (batch, short):
            shown = {name: value for name, value in part.items() if name != "labels"}
            found.append(terms(student, part, student(**shown))["soft_loss"].item())
    assert found[0] == pytest.approx(found[1], rel=1e-4)


# --- adapters ----------------------------------------------------------------------------------


def test_the_layers_of_a_lora_student_are_found_and_its_factors_are_no_targets(
    tmp_path: Path,
) -> None:
    plain, wrapped = sharp_bert(0, **NO_DROPOUT), lora(sharp_bert(0, **NO_DROPOUT), "SEQ_CLS")
    assert len(blocks(wrapped)) == len(blocks(plain)) == 2
    assert not any("lora_" in name for name in select_modules(wrapped))
    assert len(select_modules(wrapped)) == len(select_modules(plain))
    assert len(select_modules(wrapped, ["query"])) == 2
    given: dict[str, Any] = {"hidden_weight": 1.0, "attention_weight": 1.0, "max_steps": 1}
    teacher = sharp_bert(1, width=24)
    found = [distill(tmp_path, model, teacher, **given) for model in (plain, wrapped)]
    for name in ("hidden_loss", "attention_loss", "soft_loss", "hard_loss"):
        assert logged(found[1], name) == pytest.approx(logged(found[0], name), rel=1e-4)


def test_adapters_learn_while_their_base_keeps_its_zeros(tmp_path: Path) -> None:
    model = sharp_bert(0)
    prune(model, PruningConfig(sparsity=0.5))
    wrapped = lora(model, "SEQ_CLS")
    prune_with(tmp_path, wrapped, text_rows(), pruning_may_be_dense=False)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            assert weight.abs().max() > 1e-3
        if name.endswith("query.base_layer.weight"):
            assert (weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)


# --- options, logs and resumes -----------------------------------------------------------------


def test_options_set_after_construction_are_those_of_the_training(tmp_path: Path) -> None:
    def built(**given: Any) -> DistillationTrainer:
        args = DistillationArguments(**arguments(tmp_path, max_steps=2, **given))
        return DistillationTrainer(
            args=args, model_init=lambda: sharp_bert(0, **NO_DROPOUT), train_dataset=text_rows(),
            teacher=sharp_bert(1, width=24),
        )  # fmt: skip

    trainer = built()
    trainer.train()
    for changed in ({"alpha": 0.0}, {"temperature": 1.0}, {"hidden_weight": 1.0}):
        for name, value in {
            "alpha": 0.5,
            "temperature": 4.0,
            "hidden_weight": 0.0,
            **changed,
        }.items():
            setattr(trainer.args, name, value)
        expected = built(**changed)
        expected.train(), trainer.train()
        assert logged(trainer) == pytest.approx(logged(expected), rel=1e-5)
        assert logged(trainer, "soft_loss" if "alpha" not in changed else "hard_loss")
    trainer.args.alpha = 7.0
    with pytest.raises(ConfigError, match="alpha should be less than or equal to 1"):
        trainer.train()


def test_sparsity_set_after_construction_is_reached(tmp_path: Path) -> None:
    args = PruningArguments(**arguments(tmp_path, pruning_sparsity=0.5))
    trainer = PruningTrainer(sharp_bert(0), args, train_dataset=text_rows())
    args.pruning_sparsity = 0.75
    trainer.train()
    assert trainer.pruning.sparsity == pytest.approx(0.75, abs=0.01)


def test_logged_parts_start_anew(tmp_path: Path) -> None:
    trainer = distill(tmp_path, alpha=0.0, max_steps=7, logging_steps=5)
    trainer.train()
    assert logged(trainer, "hard_loss") == pytest.approx(logged(trainer), rel=1e-5)


@pytest.mark.parametrize("kind", [str, Path])
def test_each_resume_reads_the_masks_of_its_own_checkpoint(kind: Any, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "pruning_method": "magnitude", "pruning_may_be_dense": False, "pruning_sparsity": 0.8,
        "pruning_start": 1, "pruning_end": 5, "pruning_frequency": 1, "save_strategy": "steps",
        "save_steps": 2, "max_steps": 8,
    }  # fmt: skip
    trainer = prune_with(tmp_path, sharp_bert(0), text_rows(), **given)
    trainer.train(resume_from_checkpoint=kind(tmp_path / "checkpoint-2"))
    assert trainer.pruning.resume_from is None
    trainer.args.max_steps = 10
    trainer.train(resume_from_checkpoint=True)
    assert trainer.pruning.sparsity == pytest.approx(0.8, abs=0.01)


def test_masks_of_another_step_are_refused(tmp_path: Path) -> None:
    config = PruningTrainingConfig(sparsity=0.5)
    options = {"callbacks": [PruningCallback(config)]}
    saved: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    distill(tmp_path, options=options, **saved)
    (tmp_path / "checkpoint-4").rename(tmp_path / "moved")
    callback = PruningCallback(config, resume_from=tmp_path / "checkpoint-2")
    with pytest.raises(SourceError, match=r"resumes at step 4, and .* holds the masks of step 2"):
        distill(
            tmp_path, resume=str(tmp_path / "moved"), options={"callbacks": [callback]}, **saved
        )


# --- streams, optimizers and loaders -----------------------------------------------------------


class Once(IterableDataset[dict[str, Tensor]]):
    """A stream that gives each row a single time."""

    def __init__(self, rows: list[dict[str, Tensor]]) -> None:
        self.rows, self.given = iter(rows), 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for row in self.rows:
            self.given += 1
            yield row


def test_projections_take_no_row_of_a_stream(tmp_path: Path) -> None:
    given: dict[str, Any] = {"hidden_weight": 1.0, "max_steps": 2}
    stream = Once(text_rows(8))
    streamed = DistillationTrainer(
        sharp_bert(0, **NO_DROPOUT), DistillationArguments(**arguments(tmp_path, **given)),
        teacher=sharp_bert(1, width=24), train_dataset=stream,
    )  # fmt: skip
    assert stream.given == 0
    streamed.train()
    assert streamed.train_dataset is stream
    listed = distill(
        tmp_path, sharp_bert(0, **NO_DROPOUT), sharp_bert(1, width=24), text_rows(8),
        train_sampling_strategy="sequential", **given,
    )  # fmt: skip
    assert logged(streamed) == pytest.approx(logged(listed), rel=1e-5)


def test_projections_learn_in_an_optimizer_of_the_callers(tmp_path: Path) -> None:
    student = sharp_bert(0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = distill(
        tmp_path, student, sharp_bert(1, width=24), hidden_weight=1.0, max_steps=2,
        options={"optimizers": (optimizer, schedule)},
    )  # fmt: skip
    trained = {id(item) for group in optimizer.param_groups for item in group["params"]}
    projections = list(trainer.teaching.layers.parameters())
    assert projections
    assert {id(item) for item in projections} <= trained
    fresh = distill(tmp_path, sharp_bert(0), sharp_bert(1, width=24), hidden_weight=1.0,
                    max_steps=1, learning_rate=0.0)  # fmt: skip
    assert not torch.equal(projections[0], next(fresh.teaching.layers.parameters()))


def test_loaders_in_place_of_datasets_are_refused(tmp_path: Path) -> None:
    loader: DataLoader[Any] = DataLoader(text_rows())  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"give loader\.dataset as the dataset"):
        distill(tmp_path, data=loader)
    with pytest.raises(DataError, match=r"give loader\.dataset as the dataset"):
        prune_with(tmp_path, sharp_bert(0), loader)


def test_rows_without_names_need_a_collator(tmp_path: Path) -> None:
    pairs = TensorDataset(torch.randn(8, 3, 4, 4), torch.arange(8) % 3)
    with pytest.raises(DataError, match="rows of a TensorDataset have no names"):
        prune_with(tmp_path, logits_model(), pairs)

    def named(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        images, labels = zip(*rows, strict=True)
        return {"pixel_values": torch.stack(images), "labels": torch.stack(labels)}

    given: dict[str, Any] = {"remove_unused_columns": False, "max_steps": 1}
    trainer = prune_with(tmp_path, logits_model(), pairs, options={"data_collator": named}, **given)
    assert logged(trainer, "task_loss") == pytest.approx(logged(trainer))


def test_smoothed_labels_need_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a model with a config, and ConvStudent has none"):
        prune_with(tmp_path, ConvStudent(), text_rows(), label_smoothing_factor=0.1)


def test_a_module_of_logits_is_evaluated_on_every_row(tmp_path: Path) -> None:
    trainer = prune_with(tmp_path, logits_model(), rows_of("images"), max_steps=1)
    found = trainer.predict(rows_of("images")[:5])  # type: ignore[arg-type]
    assert len(found.predictions) == 5
    assert found.metrics is not None
    assert found.metrics["test_loss"] > 0
