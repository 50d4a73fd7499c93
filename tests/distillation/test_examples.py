"""The three documented ways to change the trainer run, and change what they say."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special

from tests.distillation.training import arguments, distill, logged
from tests.tiny_models import NO_DROPOUT, sharp_bert, text_rows, token_bert, token_rows

FOLDER = Path(__file__).parents[2] / "docs" / "distillation"
SEQUENTIAL: dict[str, Any] = {"train_sampling_strategy": "sequential"}


def example(name: str) -> Any:
    specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def first_batch(data: list[dict[str, Any]], *names: str) -> dict[str, Any]:
    names = names or ("input_ids", "attention_mask")
    return {name: torch.stack([row[name] for row in data[:4]]) for name in names}


def test_there_are_three() -> None:
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert names == {"another_loss", "another_teacher", "another_task"}


def test_another_loss(tmp_path: Path) -> None:
    student, teacher = sharp_bert(0, **NO_DROPOUT), sharp_bert(1)
    batch = first_batch(text_rows())
    with torch.no_grad():
        mine, theirs = (model(**batch).logits.double().numpy() for model in (student, teacher))
    q, p = special.softmax(mine / 2, axis=-1), special.softmax(theirs / 2, axis=-1)
    expected = 4 * special.rel_entr(q, p).sum(-1).mean()
    given = arguments(tmp_path, **SEQUENTIAL)
    trainer = example("another_loss").train(student, teacher, text_rows(), **given)
    assert logged(trainer, "soft_loss")[0] == pytest.approx(expected, rel=1e-4)
    plain = distill(tmp_path, sharp_bert(0, **NO_DROPOUT), temperature=2.0, alpha=0.9, **SEQUENTIAL)
    assert logged(plain, "soft_loss")[0] != pytest.approx(expected, rel=1e-3)


def test_another_teacher_that_is_an_ensemble(tmp_path: Path) -> None:
    module, student, models = (
        example("another_teacher"),
        sharp_bert(0, **NO_DROPOUT),
        [sharp_bert(1), sharp_bert(2)],
    )
    batch = first_batch(text_rows())
    with torch.no_grad():
        mine = student(**batch).logits.double().numpy()
        chances = [model(**batch).logits.double().softmax(-1).numpy() for model in models]
    p = special.softmax(np.log(np.mean(chances, axis=0)) / 2, axis=-1)
    expected = 4 * special.rel_entr(p, special.softmax(mine / 2, axis=-1)).sum(-1).mean()
    given = arguments(tmp_path, **SEQUENTIAL)
    trainer = module.train(student, module.ensemble(models), text_rows(), **given)
    assert logged(trainer)[0] == pytest.approx(expected, rel=1e-4)


def test_another_teacher_that_is_an_onnx_session(tmp_path: Path) -> None:
    """A session of ONNX Runtime names its inputs, and takes and gives arrays."""
    module, teacher = example("another_teacher"), sharp_bert(1)

    def run(outputs: None, feed: dict[str, Any]) -> list[Any]:
        tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
        return [teacher(**tensors).logits.numpy()]

    inputs = [SimpleNamespace(name="input_ids"), SimpleNamespace(name="attention_mask")]
    session = SimpleNamespace(get_inputs=lambda: inputs, run=run)
    function = module.onnx_teacher(session)
    trainer = module.train(sharp_bert(0), function, text_rows(), **arguments(tmp_path))
    same = module.train(sharp_bert(0), teacher, text_rows(), **arguments(tmp_path))
    assert logged(trainer) == pytest.approx(logged(same), rel=1e-5)


def test_another_task(tmp_path: Path) -> None:
    student, teacher, data = token_bert(0, **NO_DROPOUT), token_bert(1), token_rows()
    batch = first_batch(data)
    labels = first_batch(data, "labels")["labels"].numpy()
    with torch.no_grad():
        mine, theirs = (model(**batch).logits.double().numpy() for model in (student, teacher))

    def expected(counted: Any) -> float:
        q, p = (special.softmax(part[counted] / 2, axis=-1) for part in (mine, theirs))
        return float(4 * special.rel_entr(p, q).sum(-1).mean())

    text = batch["attention_mask"].numpy() != 0
    given = arguments(tmp_path, **SEQUENTIAL)
    trainer = example("another_task").train(student, teacher, data, **given)
    assert logged(trainer, "soft_loss")[0] == pytest.approx(expected(text), rel=1e-4)
    whole = distill(tmp_path, token_bert(0, **NO_DROPOUT), token_bert(1), data, temperature=2.0,
                    **SEQUENTIAL)  # fmt: skip
    assert logged(whole, "soft_loss")[0] == pytest.approx(expected(labels != -100), rel=1e-4)
    assert expected(labels != -100) != pytest.approx(expected(text), rel=1e-2)
