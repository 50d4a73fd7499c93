"""Training happens on a GPU where there is one; afterwards everything is where it was.

There is no GPU in the tests: what is looked at is who is asked to move where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification, Trainer

from hfcompress.cli import main
from hfcompress.distillation.teachers import as_teacher
from hfcompress.inference import placed
from hfcompress.recipes.schema import parse_recipe
from hfcompress.steps.training import trains_on_processor
from hfcompress.sweep.run import run


def test_a_trained_model_comes_back(
    one: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    move, train = BertForSequenceClassification.to, Trainer.train

    def spied_move(self: Any, *args: Any, **kwargs: Any) -> Any:
        told.append(args[0])
        return move(self, *args, **kwargs)

    def spied_train(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = train(self, *args, **kwargs)
        told.append("trained")
        return result

    monkeypatch.setattr(BertForSequenceClassification, "to", spied_move)
    monkeypatch.setattr(Trainer, "train", spied_train)
    one({"finetune": {"max_steps": 1, "batch_size": 8}})
    assert told[told.index("trained") + 1] == torch.device("cpu")


def test_a_recipe_says_where_models_train_and_predict(
    one: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[bool] = []
    predicted: list[str | None] = []
    train = Trainer.train

    @contextmanager
    def spied_place(model: nn.Module, device: str | None) -> Iterator[None]:
        predicted.append(device)
        yield

    def spied_train(self: Any, *args: Any, **kwargs: Any) -> Any:
        trained.append(self.args.use_cpu)
        return train(self, *args, **kwargs)

    monkeypatch.setattr("hfcompress.sweep.trial.placed", spied_place)
    monkeypatch.setattr(Trainer, "train", spied_train)
    step = {"finetune": {"max_steps": 1, "batch_size": 8}}
    row = one(step, device="cpu")
    assert trained == [True]
    assert set(predicted) == {"cpu"}
    # The same experiment on another device: kept models and rows are used again.
    assert one(step)["hash"] == row["hash"]
    assert trains_on_processor("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert [trains_on_processor(device) for device in ("cpu", "cuda", None)] == [True, False, False]


def test_a_placed_model_comes_back() -> None:
    model = Elsewhere()
    with placed(model, "meta"):
        assert model.sent == [torch.device("meta")]
    assert model.sent == [torch.device("meta"), torch.device("cpu")]
    with placed(model, None):
        assert len(model.sent) == 2


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(
    device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = torch.cuda if device == "cuda" else torch.backends.mps
    monkeypatch.setattr(found, "is_available", lambda: False)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: ./none\ndata: none.tsv\nsteps: [{prune: {sparsity: 0.5}}]\n")
    assert main(["run", str(recipe), "--device", device, "--output", str(tmp_path / "out")]) == 2
    sentence = f"error: device {device} is not there (torch finds none); write device: cpu"
    assert capsys.readouterr().err.strip() == sentence
    assert not (tmp_path / "out").exists()


class Elsewhere(nn.Module):
    """A model that says it is where it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.sent: list[torch.device] = []

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(values), 2, device=values.device)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        self.sent.append(torch.device(args[0]))
        return self


def test_a_teacher_goes_to_the_batches_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # none for meta
    model = Elsewhere()
    teacher = as_teacher(model)
    teacher.open()
    teacher.ask({"values": torch.zeros(3, 2)})
    assert model.sent == []
    teacher.ask({"values": torch.zeros(3, 2, device="meta")})
    teacher.close()
    teacher.close()
    assert model.sent == [torch.device("meta"), torch.device("cpu")]


def test_where_every_trial_fails_the_failures_are_told(
    model_folder: Path, write_data: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fails(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("no memory is left")

    monkeypatch.setattr(Trainer, "train", fails)
    recipe = {
        "model": str(model_folder),
        "data": {"path": str(write_data(rows=60)), "eval_fraction": 0.5},
        "steps": [{"prune": {"sparsity": 0.5}}, {"recover": {"max_steps": 1}}],
    }
    result = run(parse_recipe(recipe), tmp_path / "run")
    assert result.rows == []
    assert "no memory is left" in result.failures[0][1]
