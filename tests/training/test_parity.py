"""The Trainers of pruning and distillation give Trainer's losses, gradient norms and weights.

With ``alpha: 0``, or with nothing to prune, they are compared with ``Trainer`` for a dozen models.
`ADD_UP` names the models whose loss does not read ``num_items_in_batch``: transformers 5.23 adds
the means of accumulated batches up there, so their right figure is that of one large batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hfcompress.distillation.arguments import DistillationArguments
from hfcompress.distillation.trainer import DistillationTrainer
from hfcompress.pruning.callback import PruningCallback
from hfcompress.pruning.trainer import PruningArguments, PruningTrainer
from hfcompress.pruning.training_config import PruningTrainingConfig

# peft reads names that transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

Row = dict[str, Tensor]
VOCABULARY, LENGTH, ROWS = 40, 7, 24


def bert(kind: Any, **config: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 16,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return kind(BertConfig(**{**sizes, **config}))


def lora(model: Any, task: str) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(task_type=task, target_modules=["query"]))


def config(kind: Any, **sizes: Any) -> Any:
    return kind(**sizes)


class Pixels(nn.Module):
    """Logits of an image of 4 x 4 from two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(48, 8), nn.Linear(8, 3)

    def logits(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.last(self.first(pixel_values.flatten(1)).relu())
        return logits


class Named(Pixels):
    """Takes its labels by their own name, and gives a tuple."""

    def forward(self, pixel_values: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(pixel_values)
        return F.cross_entropy(logits, targets), logits


class Open(Pixels):
    """Takes a batch whole, and names none of its columns."""

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        logits = self.logits(batch["pixel_values"])
        return {"loss": F.cross_entropy(logits, batch["labels"]), "logits": logits}


class Unsupervised(Pixels):
    """Its loss needs no labels."""

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        logits = self.logits(pixel_values)
        return {"loss": logits.square().mean(), "logits": logits}


class Listed(Pixels):
    """Its labels are a list of dicts, as those of detectors."""

    def forward(self, pixel_values: Tensor, labels: list[Row]) -> dict[str, Tensor]:
        logits = self.logits(pixel_values)
        classes = torch.stack([label["class"] for label in labels])
        return {"loss": F.cross_entropy(logits, classes), "logits": logits}


class LogitsOnly(Pixels):
    """Gives a tensor of logits, which Trainer cannot train on."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.logits(pixel_values)


@dataclass(frozen=True)
class Subject:
    """A model, its rows, and how Trainer has to be told about them."""

    make: Callable[[], nn.Module]
    rows: str
    arguments: dict[str, Any] = field(default_factory=dict)


SUBJECTS: dict[str, Subject] = {
    "bert": Subject(lambda: bert(BertForSequenceClassification, num_labels=3), "text"),
    "bert, several labels": Subject(
        lambda: bert(
            BertForSequenceClassification, num_labels=3, problem_type="multi_label_classification"
        ),
        "several",
    ),
    "bert, tokens": Subject(lambda: bert(BertForTokenClassification, num_labels=3), "tokens"),
    "bert, masked": Subject(lambda: bert(BertForMaskedLM), "words"),
    "bert, spans": Subject(lambda: bert(BertForQuestionAnswering), "spans"),
    "gpt2": Subject(
        lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=8, n_layer=1, n_head=2,
                       resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        ),
        "words",
    ),
    "llama": Subject(
        lambda: LlamaForCausalLM(
            LlamaConfig(vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8,
                        num_hidden_layers=1, num_attention_heads=2, pad_token_id=0)
        ),
        "words",
    ),
    "vit": Subject(
        lambda: ViTForImageClassification(
            config(ViTConfig, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                      intermediate_size=8, image_size=4, patch_size=2, num_labels=3)
        ),
        "images",
    ),
    "lora": Subject(
        lambda: lora(bert(BertForSequenceClassification, num_labels=3), "SEQ_CLS"), "text"
    ),
    "lora, tokens": Subject(
        lambda: lora(bert(BertForTokenClassification, num_labels=3), "TOKEN_CLS"), "tokens"
    ),
    "module, named labels": Subject(Named, "targets", {"label_names": ["targets"]}),
    "module, whole batch": Subject(Open, "images", {"remove_unused_columns": False}),
    "module, no labels": Subject(Unsupervised, "pixels"),
    "module, listed labels": Subject(Listed, "listed"),
    "t5": Subject(
        lambda: T5ForConditionalGeneration(
            config(T5Config, vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=8,
                   num_layers=1, num_heads=2, dropout_rate=0.0, decoder_start_token_id=0)
        ),
        "words",
    ),
}  # fmt: skip
ADD_UP = {
    "bert", "bert, several labels", "bert, tokens", "bert, masked", "lora", "lora, tokens",
    "module, whole batch", "t5",
}  # fmt: skip
"""Models whose loss is the mean of each batch, whatever ``num_items_in_batch`` says."""


def rows_of(kind: str) -> list[Row]:
    chance = torch.Generator().manual_seed(5)
    rows: list[Row] = []
    for number in range(ROWS):
        ids = torch.randint(1, VOCABULARY, (LENGTH,), generator=chance)
        length = 3 + (5 * number) % (LENGTH - 2)
        text = {"input_ids": ids, "attention_mask": (torch.arange(LENGTH) < length).long()}
        padding = text["attention_mask"] == 0
        label = torch.tensor(number % 3)
        image = {"pixel_values": torch.randn(3, 4, 4, generator=chance)}
        rows.append({
            "text": {**text, "labels": label},
            "several": {**text, "labels": F.one_hot(label, 3).float()},
            "tokens": {**text, "labels": (ids % 3).masked_fill(padding, -100)},
            "words": {**text, "labels": ids.masked_fill(padding, -100)},
            "spans": {**text, "start_positions": label, "end_positions": label + 1},
            "images": {**image, "labels": label},
            "targets": {**image, "targets": label},
            "pixels": image,
            "listed": {**image, "labels": label},
        }[kind])  # fmt: skip
    return rows


def listed(rows: list[Row]) -> dict[str, Any]:
    images = torch.stack([row["pixel_values"] for row in rows])
    return {"pixel_values": images, "labels": [{"class": row["labels"]} for row in rows]}


class Once(IterableDataset[Row]):
    """A stream that gives each row a single time."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = iter(rows)

    def __iter__(self) -> Iterator[Row]:
        yield from self.rows


TRAINERS = ("distillation", "pruning", "callback")


def trained(
    trainer: str, name: str, folder: Path, *, stream: bool = False, resume: Path | None = None,
    options: dict[str, Any] | None = None, **given: Any,
) -> Trainer:  # fmt: skip
    """Train a subject for three updates of 8 rows, in the rows' order."""
    subject = SUBJECTS[name]
    torch.manual_seed(0)
    model = subject.make()
    arguments: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 8,
        "train_sampling_strategy": "sequential", "learning_rate": 0.1, "optim": "sgd",
        "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True,
        "disable_tqdm": True, **subject.arguments, **given,
    }  # fmt: skip
    rows = rows_of(subject.rows)
    common: dict[str, Any] = {
        "model": model, "train_dataset": Once(rows) if stream else rows, **(options or {}),
    }  # fmt: skip
    if subject.rows == "listed":
        common["data_collator"] = listed
    made: Trainer
    if trainer == "distillation":
        args = DistillationArguments(**arguments, alpha=0.0)
        made = DistillationTrainer(args=args, teacher=lambda batch: None, **common)
    elif trainer == "pruning":
        keep: dict[str, Any] = {"pruning_method": "keep_zeros", "pruning_may_be_dense": True}
        made = PruningTrainer(args=PruningArguments(**arguments, **keep), **common)
    else:
        if trainer == "callback":
            config = PruningTrainingConfig(method="keep_zeros", may_be_dense=True)
            common["callbacks"] = [PruningCallback(config)]
        made = Trainer(args=TrainingArguments(**arguments), **common)
    made.train(resume_from_checkpoint=resume if resume is None else str(resume))
    return made


def figures(trainer: Trainer) -> Tensor:
    """Losses and gradient norms of all updates."""
    logs = [row for row in trainer.state.log_history if "loss" in row]
    return torch.tensor([(row["loss"], row["grad_norm"]) for row in logs])


def weights(trainer: Trainer) -> Tensor:
    assert trainer.model is not None
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def assert_same(found: Trainer, expected: Trainer) -> None:
    torch.testing.assert_close(figures(found), figures(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights(found), weights(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SUBJECTS)
def test_one_batch_an_update(name: str, tmp_path: Path) -> None:
    expected = trained("plain", name, tmp_path)
    assert figures(expected)[0, 1] > 0
    for trainer in TRAINERS:
        assert_same(trained(trainer, name, tmp_path), expected)


@pytest.mark.parametrize("name", SUBJECTS)
def test_four_batches_an_update(name: str, tmp_path: Path) -> None:
    four: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    plain, whole = trained("plain", name, tmp_path, **four), trained("plain", name, tmp_path)
    adds_up = bool(figures(plain)[0, 0] > 3 * figures(whole)[0, 0])
    assert adds_up == (name in ADD_UP)
    for trainer in TRAINERS:
        right = whole if adds_up and trainer != "callback" else plain
        assert_same(trained(trainer, name, tmp_path, **four), right)


def mean_of_items(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    logits = outputs["logits"]
    total: Tensor = F.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    mean: Tensor = total / num_items_in_batch
    return mean


def mean_of_batch(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return F.cross_entropy(outputs["logits"].flatten(0, -2), labels.flatten(), ignore_index=-100)


@pytest.mark.parametrize("batches", [1, 4])
@pytest.mark.parametrize("name", ["bert", "bert, tokens", "vit", "lora", "llama"])
def test_label_smoothing(name: str, batches: int, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "label_smoothing_factor": 0.2, "gradient_accumulation_steps": batches,
        "per_device_train_batch_size": 8 // batches,
    }  # fmt: skip
    expected = trained("plain", name, tmp_path, **given)
    assert not torch.allclose(figures(expected), figures(trained("plain", name, tmp_path)))
    for trainer in TRAINERS[:2]:
        assert_same(trained(trainer, name, tmp_path, **given), expected)


@pytest.mark.parametrize("batches", [1, 4])
@pytest.mark.parametrize("name", ["bert", "bert, tokens", "vit", "lora"])
def test_a_loss_function_of_the_caller(name: str, batches: int, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "gradient_accumulation_steps": batches, "per_device_train_batch_size": 8 // batches,
    }  # fmt: skip
    reads: dict[str, Any] = {"compute_loss_func": mean_of_items}
    ignores: dict[str, Any] = {"compute_loss_func": mean_of_batch}
    expected = trained("plain", name, tmp_path, options=reads, **given)
    for trainer in TRAINERS[:2]:
        assert_same(trained(trainer, name, tmp_path, options=reads, **given), expected)
        # A function that does not divide by the items of the update counts each batch's share.
        assert_same(trained(trainer, name, tmp_path, options=ignores, **given), expected)


@pytest.mark.parametrize("name", ["bert", "llama", "module, no labels"])
def test_a_stream_that_gives_each_row_once(name: str, tmp_path: Path) -> None:
    expected = trained("plain", name, tmp_path, stream=True)
    for trainer in TRAINERS:
        assert_same(trained(trainer, name, tmp_path, stream=True), expected)


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit", "lora"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_resumed_trainings_end_alike(name: str, trainer: str, tmp_path: Path) -> None:
    saved: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    resumed = []
    for kind in (trainer, "plain"):
        trained(kind, name, tmp_path / kind, **saved)
        checkpoint = tmp_path / kind / "checkpoint-2"
        resumed.append(trained(kind, name, tmp_path / kind, resume=checkpoint, **saved))
    assert_same(*resumed)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("batches", [1, 4])
@pytest.mark.parametrize("trainer", TRAINERS[:2])
def test_a_module_of_logits_learns_from_its_labels(
    trainer: str, batches: int, compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SUBJECTS, "logits", Subject(LogitsOnly, "images"))
    given: dict[str, Any] = {
        "gradient_accumulation_steps": batches, "per_device_train_batch_size": 8 // batches,
    }  # fmt: skip

    def loss(outputs: Tensor, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        mean: Tensor = F.cross_entropy(outputs, labels, reduction="sum") / num_items_in_batch
        return mean

    options: dict[str, Any] = {"compute_loss_func": loss}
    plain: dict[str, Any] = {**given, "remove_unused_columns": True, "label_names": ["labels"]}
    expected = trained("plain", "logits", tmp_path, options=options, **plain)
    if compiled:
        compile_model: Any = torch.compile
        made = Subject(lambda: compile_model(LogitsOnly(), backend="eager"), "images")
        monkeypatch.setitem(SUBJECTS, "logits", made)
        given["remove_unused_columns"] = False  # the wrapper's forward names no columns
    assert_same(trained(trainer, "logits", tmp_path, **given), expected)


@pytest.mark.parametrize("trainer", TRAINERS[:2])
def test_a_compiled_model_keeps_its_loss(trainer: str, tmp_path: Path) -> None:
    four: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    compiled: dict[str, Any] = {"torch_compile": True, "torch_compile_backend": "eager"}
    for name in ("bert", "vit", "module, whole batch"):
        expected = trained("plain", name, tmp_path, **({} if name in ADD_UP else four))
        assert_same(trained(trainer, name, tmp_path, **four, **compiled), expected)


@pytest.mark.parametrize("trainer", TRAINERS[:2])
@pytest.mark.parametrize("scaled", [True, False])
def test_a_subclass_says_whether_its_loss_is_scaled(
    trainer: str, scaled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    monkeypatch.setattr(Trainer, "loss_is_scaled_for_ga", scaled)
    for name in ("bert", "vit", "module, named labels"):
        expected = trained("plain", name, tmp_path, **four)
        assert_same(trained(trainer, name, tmp_path, **four), expected)
