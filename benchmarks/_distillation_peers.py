"""Students trained by others than us, each from the same start on the same sentences.

They train under bf16 autocast for three epochs, in batches of 32 as the teacher was.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, get_linear_schedule_with_warmup, set_seed

from hfcompress.data.encode import Batch, Encoded
from hfcompress.steps.training import fast_attention

EPOCHS, BATCH_SIZE = 3, 32
RATE = 2e-4
TEMPERATURE = 4.0


def shuffled(rows: Encoded, seed: int) -> Iterator[Batch]:
    """One epoch in batches of like length, in random order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator).numpy()
    window = 50 * BATCH_SIZE
    for start in range(0, len(order), window):
        batches = list(rows.batches(BATCH_SIZE, order[start : start + window]))
        for place in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[place][1]


def bare_kl_loop(student: PreTrainedModel, teacher: PreTrainedModel, rows: Encoded) -> None:
    """The loop that everybody writes: KL at a temperature on the training sentences."""
    set_seed(0)
    steps = EPOCHS * -(-len(rows) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE)
    linear: Any = get_linear_schedule_with_warmup  # transformers gives it no types
    schedule = linear(optimizer, steps // 20, steps)
    student.train()
    with fast_attention(student), fast_attention(teacher):
        for epoch in range(EPOCHS):
            for batch in shuffled(rows, epoch):
                batch.pop("labels", None)
                with torch.autocast("cpu", torch.bfloat16):
                    with torch.no_grad():
                        taught = teacher(**batch).logits.float()
                    own = student(**batch).logits.float()
                loss: Any = TEMPERATURE**2 * F.kl_div(
                    F.log_softmax(own / TEMPERATURE, -1),
                    F.log_softmax(taught / TEMPERATURE, -1),
                    reduction="batchmean",
                    log_target=True,
                )
                loss.backward()
                nn.utils.clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    student.train(False)


def textbrewer_missing() -> str | None:
    """Why TextBrewer cannot run here; None where it can."""
    try:
        _import_textbrewer()
    except Exception as error:  # whatever an old library raises on a new torch
        return f"{type(error).__name__}: {error}"
    return None


def textbrewer(
    student: PreTrainedModel, teacher: PreTrainedModel, rows: Encoded, layers: list[int]
) -> None:
    """TextBrewer's GeneralDistiller: KL and, as in its examples, hidden states by MSE."""
    brewer = _import_textbrewer()
    set_seed(0)
    steps = EPOCHS * -(-len(rows) // BATCH_SIZE)
    matches = [
        {"layer_T": number + 1, "layer_S": place + 1, "feature": "hidden",
         "loss": "hidden_mse", "weight": 1}
        for place, number in enumerate(layers)
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE)
    settings = {"num_warmup_steps": steps // 20, "num_training_steps": steps}
    with tempfile.TemporaryDirectory() as folder, fast_attention(student), fast_attention(teacher):
        train = brewer.TrainingConfig(
            device="cpu", log_dir=None, output_dir=folder, ckpt_frequency=1, ckpt_epoch_frequency=99
        )
        losses = brewer.DistillationConfig(
            temperature=TEMPERATURE, hard_label_weight=0, kd_loss_weight=1,
            intermediate_matches=matches,
        )  # fmt: skip
        distiller = brewer.GeneralDistiller(train, losses, teacher, student, _adaptor, _adaptor)
        # A cache of cast weights would outlive the optimizer's steps: the loop is inside.
        with distiller, torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            distiller.train(
                optimizer,
                _Loader(rows),
                num_epochs=EPOCHS,
                scheduler_class=get_linear_schedule_with_warmup,
                scheduler_args=settings,
                max_grad_norm=1.0,
                callback=None,
                output_hidden_states=True,
            )
    student.train(False)


class _Loader:
    """What TextBrewer takes for a DataLoader."""

    def __init__(self, rows: Encoded) -> None:
        self.rows, self.epoch = rows, 0

    def __len__(self) -> int:
        return -(-len(self.rows) // BATCH_SIZE)

    def __iter__(self) -> Iterator[Batch]:
        self.epoch += 1
        return shuffled(self.rows, self.epoch)


def _adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    return {
        "logits": outputs.logits,
        "hidden": outputs.hidden_states,
        "inputs_mask": batch["attention_mask"],
    }


def _import_textbrewer() -> Any:
    """TextBrewer writes to TensorBoard always; without it, into nothing."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        stub = ModuleType("torch.utils.tensorboard")
        stub.SummaryWriter = _NoWriter  # type: ignore[attr-defined]
        sys.modules["torch.utils.tensorboard"] = stub
    import textbrewer

    return textbrewer


class _NoWriter:
    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def add_scalar(self, *args: object, **kwargs: object) -> None:
        pass

    def close(self) -> None:
        pass
