"""bf16 with fp32 where it matters gives the classes that fp32 gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from hfcompress.data.config import DataConfig
from hfcompress.data.encode import Encoded, encode
from hfcompress.data.load import load_examples
from hfcompress.inference import SAFETY, SAMPLE, checking_pays, predict, predict_checked
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

ROWS = 400


@pytest.fixture
def encoded(write_data: Callable[..., Path]) -> Encoded:
    examples = load_examples(DataConfig(path=str(write_data(rows=ROWS))), "text", False)
    return encode(examples, examples.eval, tiny_tokenizer(), None)


class Noisy(nn.Module):
    """Logits with known margins in fp32, wrong by up to ``error`` in bf16."""

    def __init__(self, margins: torch.Tensor, error: float) -> None:
        super().__init__()
        self.precision = nn.Parameter(torch.zeros(1))
        self.margins, self.error = margins, error
        self.rows: list[int] = []  # how many rows each fp32 batch had

    def forward(self, row: torch.Tensor) -> SequenceClassifierOutput:
        margins = self.margins[row]
        if self.precision.dtype == torch.bfloat16:
            margins = margins + self.error * torch.sin(37.0 * row)
        else:
            self.rows.append(len(row))
        return SequenceClassifierOutput(logits=torch.stack([torch.zeros_like(margins), margins], 1))


def numbered(rows: int) -> Encoded:
    """Rows that say no more than their number."""
    from datasets import Dataset

    data = Dataset.from_dict({"row": list(range(rows)), "labels": [0] * rows})

    def collate(items: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        return {"row": torch.tensor([item["row"] for item in items])}

    return Encoded(data, None, collate)


def test_the_classes_are_those_of_fp32_and_few_rows_cost_fp32() -> None:
    margins = torch.linspace(-4, 4, 2000)[torch.randperm(2000)]
    model = Noisy(margins, error=0.05)
    found = predict_checked(model, numbered(2000), 32)
    wrong_by_bf16 = (margins + 0.05 * torch.sin(37.0 * torch.arange(2000))).sign() != margins.sign()
    assert wrong_by_bf16.sum() > 2  # or the test shows nothing
    np.testing.assert_array_equal(found.logits.argmax(1), (margins > 0).long().numpy())
    near = int((margins.abs() < 0.05).sum())
    assert near < found.exact_rows == sum(model.rows)
    assert found.exact_rows < SAMPLE + 1.1 * int((margins.abs() < 0.05 * (SAFETY + 1)).sum())


def test_a_model_that_is_close_everywhere_is_computed_in_fp32() -> None:
    margins = torch.linspace(-0.01, 0.01, 500)
    found = predict_checked(Noisy(margins, error=0.05), numbered(500), 32)
    assert found.exact_rows > 450
    np.testing.assert_array_equal(found.logits.argmax(1), (margins > 0).long().numpy())


def test_rows_computed_again_have_the_logits_of_fp32(encoded: Encoded) -> None:
    model = tiny_bert()
    exact = predict(model, encoded, 32)
    found = predict_checked(model, encoded, 32)
    equal = np.isclose(found.logits, exact, rtol=0, atol=1e-6).all(axis=1)
    assert SAMPLE <= found.exact_rows <= equal.sum()
    np.testing.assert_array_equal(found.logits.argmax(1), exact.argmax(1))
    np.testing.assert_allclose(found.logits, exact, atol=0.05)


def test_three_classes(encoded: Encoded) -> None:
    model = tiny_bert(labels=3)
    found = predict_checked(model, encoded, 32)
    np.testing.assert_array_equal(found.logits.argmax(1), predict(model, encoded, 32).argmax(1))


def test_it_pays_only_where_the_processor_can(
    encoded: Encoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_bert()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert checking_pays(model, encoded)
    assert not checking_pays(model, encoded.select(np.arange(2 * SAMPLE)))
    assert not checking_pays(tiny_bert().bfloat16(), encoded)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    assert not checking_pays(model, encoded)
