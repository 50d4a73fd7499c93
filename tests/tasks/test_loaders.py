"""Any loader: every form of batch gives the same names, and what is no batch is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from hfcompress.errors import DataError
from hfcompress.inference import call_model, input_names
from hfcompress.tasks.loaders import named_batches
from tests.tiny_models import tiny_bert

X, Y = torch.arange(24.0).reshape(8, 3), torch.arange(8) % 2


class One(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Two(nn.Module):
    def forward(self, first: Tensor, second: Tensor, scale: Tensor | None = None) -> Tensor:
        return first - second if scale is None else first - second * scale


class Placed(nn.Module):
    def forward(self, first: Tensor, second: Tensor, /) -> Tensor:
        return first - second


class Any_(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] - inputs[1]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(X, Y, strict=True))


FORMS: dict[str, Callable[[], Any]] = {
    "loader": lambda: DataLoader(TensorDataset(X, Y), 4),
    "tensor dataset": lambda: TensorDataset(X, Y),
    "stream": Stream,
    "tuples": lambda: [(X[:4], Y[:4]), (X[4:], Y[4:])],
    "dicts": lambda: [{"x": X[:4], "labels": Y[:4]}, {"x": X[4:], "labels": Y[4:]}],
    "another name for labels": lambda: [{"x": X, "target": Y}],
    "inputs and labels": lambda: [({"x": X}, Y)],
    "generator": lambda: ((X[i : i + 2], Y[i : i + 2]) for i in range(0, 8, 2)),
    "rows": lambda: [{"x": x, "labels": int(y)} for x, y in zip(X, Y, strict=True)],
    "lists of rows": lambda: DataLoader(
        [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)],  # type: ignore[arg-type]
        4, collate_fn=list,
    ),
    "arrays": lambda: [(X.numpy(), Y.numpy())],
    "lists of numbers": lambda: [{"x": X.tolist(), "labels": Y.tolist()}],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(form: str) -> None:
    batches = list(named_batches(FORMS[form](), One()))
    assert all(set(batch) == {"x", "labels"} for batch in batches)
    assert torch.equal(torch.cat([batch["x"] for batch in batches]), X)
    assert torch.equal(torch.cat([batch["labels"] for batch in batches]), Y)


def test_a_dataset_of_the_package_datasets() -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"x": X.tolist(), "label": Y.tolist()})
    (batch,) = named_batches(rows, One())
    assert torch.equal(batch["x"], X)
    assert torch.equal(batch["labels"], Y)


@pytest.mark.parametrize("model", [Two(), Placed(), Any_()])
def test_inputs_by_name_or_by_place(model: nn.Module) -> None:
    (batch,) = named_batches([(X, X + 1, Y)], model)
    assert torch.equal(batch["labels"], Y)
    assert call_model(model, batch).unique().tolist() == [-1.0]  # type: ignore[attr-defined]
    (nested,) = named_batches([((X, X + 1), Y)], model)
    assert call_model(model, nested).unique().tolist() == [-1.0]  # type: ignore[attr-defined]


def test_inputs_with_defaults_are_filled_after_the_labels() -> None:
    (batch,) = named_batches([(X, X + 1, torch.tensor(2.0).expand(8, 1), Y)], Two())
    assert set(batch) == {"first", "second", "scale", "labels"}
    assert input_names(Two()) == ("first", "second")
    (alone,) = named_batches(X, One())
    assert set(alone) == {"x"}


@pytest.mark.parametrize(
    ("data", "model", "says"),
    [
        ([], One(), "the loader has no batches: it is empty, or a generator that was read before"),
        (iter(()), One(), "give a list or a DataLoader, which can be read again"),
        ([(X[:0], Y[:0])], One(), "a batch has no rows"),
        (["a text"], One(), "must be dicts of tensors .*, not str"),
        (3, One(), "not int"),
        ([(X, None)], One(), "not NoneType"),
        ([(X,)], Two(), "has 1 inputs and Two takes first, second"),
        ([(X, X, X, X, Y)], Two(), "has 4 inputs and Two takes first, second, scale"),
        ([{"a": X, "b": X}], Two(), "'a', 'b', and forward of Two takes first, scale, second"),
        ([(X, Y)], tiny_bert(), "reads its inputs by name, and a batch is a tuple of 2"),
        ([{"x": [[1], [1, 2]]}], One(), "not list"),
        (
            [{"x": torch.zeros(2), "labels": 0}, {"x": torch.zeros(3), "labels": 0}], One(),
            "rows of different sizes or names cannot be one batch; give a DataLoader whose",
        ),
    ],
)  # fmt: skip
def test_refuses_what_is_no_batch(data: Any, model: nn.Module, says: str) -> None:
    with pytest.raises(DataError, match=says):
        list(named_batches(data, model))


def test_a_generator_that_was_read_is_refused() -> None:
    batches = (batch for batch in [(X, Y)])
    list(named_batches(batches, One()))
    with pytest.raises(DataError, match="read before"):
        list(named_batches(batches, One()))
