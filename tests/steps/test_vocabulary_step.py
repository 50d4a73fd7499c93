"""The ``vocabulary`` step: rows encoded anew for everything that follows, teachers included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hfcompress.checkpoint.record import METHOD
from hfcompress.data.config import DataConfig
from hfcompress.errors import ConfigError, ModelError
from hfcompress.inference import predict
from hfcompress.recipes.schema import Recipe, parse_recipe
from hfcompress.shrinking.vocabulary.tokenizer import VocabularyConfig, cut_tokenizer
from hfcompress.steps.shrink import check_vocabulary
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.experiment import Experiment, prepare
from hfcompress.sweep.run import run
from hfcompress.sweep.trial import Runner
from hfcompress.utils import Progress
from tests.tiny_models import shrinkable_model
from tests.tiny_tokenizers import tiny_tokenizer

WORDS = ("good", "fine", "bad", "dull", "film", "the")
KEPT = len(WORDS) + 6  # five special tokens, and the word "a", which is a single character
FAST = {"max_steps": 4, "batch_size": 8, "learning_rate": 5e-3}


@pytest.fixture
def make(model_folder: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Recipes on sentences that use six of the tokenizer's twenty words."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(40):
        words = generator.choice(WORDS, size=4).tolist()
        rows.append(f"{' '.join([*words, *WORDS])}\t{number % 2}")
    path = tmp_path / "few.tsv"
    path.write_text("\n".join(["sentence\tlabel", *rows]) + "\n")

    def made(*steps: dict[str, Any], **more: Any) -> Recipe:
        data = {"model": str(model_folder), "data": {"path": str(path), "eval_fraction": 0.5}}
        return parse_recipe({**data, "steps": list(steps), **more})

    return made


def bench_of(recipe: Recipe, tmp_path: Path) -> Experiment:
    return prepare(recipe, Progress(), StepCache(tmp_path / "steps"))


def test_tokens_of_further_texts_stay_but_not_those_of_measured_rows(
    make: Any, tmp_path: Path
) -> None:
    folder, more = tmp_path / "data", tmp_path / "more.txt"
    folder.mkdir()
    (tmp_path / "few.tsv").rename(folder / "train.tsv")
    (folder / "dev.tsv").write_text("sentence\tlabel\ngrim film\t0\nfine cast\t1\n")
    more.write_text("a lovely scene\nGrim  film\n")
    step = {"vocabulary": {"unlabelled": {"path": str(more)}}}
    (row,) = run(make(step, data={"path": str(folder)}), None).rows
    assert row["steps"][0]["tokens"] == KEPT + 2  # lovely and scene

    config = VocabularyConfig(unlabelled=DataConfig(path=str(more)))
    alone = cut_tokenizer(tiny_tokenizer(), ["the film"], config)
    assert alone.tokenizer.tokenize("a lovely film") == ["a", "lovely", "film"]
    assert len(alone.kept) == 5 + len(["a", "lovely", "scene", "grim", "film", "the"])


def test_the_measured_rows_get_the_same_answers(make: Any, tmp_path: Path) -> None:
    (row,) = run(make({"vocabulary": {}}, save_models=True), tmp_path / "run").rows
    (dense,) = run(make({"prune": {"method": "wanda", "sparsity": 0}}), None).rows
    assert row["drop"] == 0
    assert row["agreement"] == 1
    assert row["value"] == dense["value"]
    assert row["steps"][0]["tokens"] == KEPT
    assert row["parameters"] == dense["parameters"] - 32 * (25 - row["steps"][0]["tokens"])
    assert row["macs"] == dense["macs"]
    assert row["method"] == "vocabulary"

    (folder,) = (tmp_path / "run" / "models").iterdir()
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == row["steps"][0]["tokens"]
    assert tokenizer.tokenize("the good film") == ["the", "good", "film"]
    assert not hasattr(model.config, "quantization_config")


def test_what_follows_reads_rows_encoded_anew(make: Any, tmp_path: Path) -> None:
    recipe = make({"vocabulary": {}}, {"finetune": FAST})
    bench = bench_of(recipe, tmp_path)
    runner, (trial,) = Runner(bench, bench.trials), bench.trials
    (start, _), (cut, _), (last, _) = (runner.state_after(trial, place) for place in range(3))
    before, after = bench.encoding(start), bench.encoding(cut)
    assert before.processor is not after.processor
    assert bench.encoding(last) is after
    dense = predict(runner.dense_model(trial), before.eval, 8)
    assert np.allclose(predict(cut.network, after.eval, 8), dense, atol=1e-6)
    # A teacher in a later step reads the rows that its student reads.
    teacher = runner._teacher(trial, last)
    assert np.allclose(predict(teacher, after.eval, 8), dense, atol=1e-6)
    uncut = runner._teacher(trial, start)
    assert np.allclose(predict(uncut, before.eval, 8), dense, atol=1e-6)


def test_pruning_and_recovering_by_the_dense_model_follow(make: Any) -> None:
    (alone,) = run(make({"vocabulary": {}}), None).rows
    training = {**FAST, "task_loss_weight": 0, "distillation": {}}
    steps = ({"prune": {"method": "wanda", "sparsity": 0.5}}, {"recover": training})
    result = run(make({"vocabulary": {}}, *steps), None)
    assert result.failures == []
    (row,) = result.rows
    assert row["parameters"] == alone["parameters"]
    assert row["weights_hash"] != alone["weights_hash"]
    assert 0.4 < row["actual_sparsity"] < 0.6


def test_rarer_tokens_go_where_that_is_asked(make: Any) -> None:
    rows = run(make({"vocabulary": {}}, grid={"vocabulary.min_count": [1, 1000]}), None).rows
    assert [row["steps"][0]["tokens"] for row in rows] == [KEPT, KEPT - len(WORDS)]


def test_kept_models_may_be_packed(make: Any, tmp_path: Path) -> None:
    steps = {"prune": {"sparsity": 0.9}}
    recipe = make(steps, save_models=True, save_sparse=True)
    run(recipe, tmp_path / "packed")
    run(make(steps, save_models=True), tmp_path / "plain")
    (packed,), (plain,) = (
        list((tmp_path / name / "models").iterdir()) for name in ("packed", "plain")
    )
    assert METHOD in (packed / "config.json").read_text()
    weights = "model.safetensors"
    assert (packed / weights).stat().st_size < 0.8 * (plain / weights).stat().st_size
    one, other = (
        AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
        for folder in (packed, plain)
    )
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_save_sparse_needs_models_to_save(make: Any) -> None:
    with pytest.raises(ConfigError, match="write save_models: true"):
        make(save_sparse=True)


def test_a_model_of_images_is_refused() -> None:
    from hfcompress.shrinking.vocabulary.tokenizer import VocabularyConfig

    with pytest.raises(ModelError, match="ViTForImageClassification reads no tokens"):
        check_vocabulary(shrinkable_model("vit"), VocabularyConfig())
