"""The step that distils: every kind of student, every option, refused before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from hfcompress.errors import ConfigError
from hfcompress.measure.size import count_parameters
from hfcompress.recipes.schema import parse_recipe
from hfcompress.steps.context import Context
from hfcompress.sweep.run import run
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

FAST: dict[str, Any] = {"max_steps": 6, "batch_size": 8, "learning_rate": 5e-3}
ONE_LAYER: dict[str, Any] = {**FAST, "student": {"layers": 1}}
Run = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _caches_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def test_a_student_is_smaller_and_is_reloaded(one: Run, tmp_path: Path) -> None:
    row = one({"distill": ONE_LAYER}, output=tmp_path / "run", save_models=True)
    (folder,) = (tmp_path / "run" / "models").iterdir()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_hidden_layers == 1
    assert row["parameters"] == count_parameters(model) < count_parameters(tiny_bert())
    (done,) = row["steps"]
    assert done["step"] == "distill"
    assert done["teacher_layers"] == [1]
    assert done["updates"] == 6
    assert len(done["teacher_logits"]) == 4
    # Kept by content hash: the second run trains nothing and gives the same.
    again = one({"distill": ONE_LAYER})
    assert again["weights_hash"] == row["weights_hash"]


CHANGES: list[dict[str, Any]] = [
    {"student": {"layers": 1, "init": "first"}},
    {"student": {"layers": 1, "ffn": 32}},
    {"student": {"layers": 1, "hidden": 16}},
    {"student": {"layers": 1, "hidden": 16, "calibration_rows": 8}},
    {"student": {"layers": 1, "hidden": 16, "calibration_rows": 9}},
    {"student": {"layers": 1, "heads": 2}},
    {"student": None},
    {"distillation": {"temperature": 1.0}},
    {"distillation": {"alpha": 1.0}},
    {"distillation": {"hidden_weight": 1.0}},
    {"distillation": {"alpha": 1.0}, "augmentation": {"share": 0.5}},
    {"distillation": {"alpha": 1.0}, "augmentation": {"share": 1.0}},
    {"dropout": None},
    {"freeze_embeddings": False},
    {"epochs": 1.0, "max_steps": None},
]


def test_every_option_changes_the_result(one: Run) -> None:
    steps = [ONE_LAYER, *({**ONE_LAYER, **change} for change in CHANGES)]
    seen = [one({"distill": step})["weights_hash"] for step in steps]
    assert [step for step, key in zip(steps, seen, strict=True) if seen.count(key) > 1] == []


def test_further_texts_are_used_and_measured_ones_are_not(one: Run, tmp_path: Path) -> None:
    step = {**ONE_LAYER, "distillation": {"alpha": 1.0}, "augmentation": {"share": 0.0}}
    plain = one({"distill": step})
    texts = tmp_path / "more.txt"
    texts.write_text("a warm scene was bright\nthe cold plot is grim\n" * 20)
    more = {**step, "augmentation": {"share": 0.0, "unlabelled": str(texts)}}
    assert one({"distill": more})["weights_hash"] != plain["weights_hash"]
    context: Any = SimpleNamespace(
        examples=SimpleNamespace(columns=("a", "b"), eval={"a": ["One  film"], "b": ["x y"]})
    )
    found = Context.unmeasured(context, ["one film", "ONE FILM ", "X y", "another film"])
    assert found == ["another film"]


def test_a_changed_file_of_texts_is_read_again(one: Run, tmp_path: Path) -> None:
    """The step's result is kept by what its texts say, not by their file's name."""
    texts = tmp_path / "more.txt"
    step = {**ONE_LAYER, "distillation": {"alpha": 1.0}}
    step["augmentation"] = {"share": 0.0, "unlabelled": str(texts)}
    hashes = []
    for line in ("a warm scene was bright", "the cold plot is grim", "a warm scene was bright"):
        texts.write_text(f"{line}\n" * 40)
        hashes.append(one({"distill": step})["weights_hash"])
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_changed_student_is_trained_again(one: Run, tmp_path: Path) -> None:
    hashes = []
    for seed in (1, 2):
        tiny_bert(seed=seed).save_pretrained(tmp_path / "student")
        tiny_tokenizer().save_pretrained(tmp_path / "student")
        step = {"max_steps": 1, "model": str(tmp_path / "student")}
        hashes.append(one({"distill": step})["weights_hash"])
    assert hashes[0] != hashes[1]


def test_a_cached_teacher_teaches_the_same(one: Run, tmp_path: Path) -> None:
    options = {"alpha": 1.0, "hidden_weight": 0.5}
    live = one({"distill": {**ONE_LAYER, "distillation": options}}, output=tmp_path / "live")
    assert not (tmp_path / "datasets" / "hfcompress-teachers").exists()
    kept = one(
        {"distill": {**ONE_LAYER, "distillation": options, "cache": True}},
        output=tmp_path / "kept",
    )
    caches = [p for p in (tmp_path / "datasets" / "hfcompress-teachers").iterdir() if p.is_dir()]
    assert len(caches) == 1
    assert (caches[0] / "hidden_1.npy").is_file()
    assert kept["steps"][0]["training_loss"] == pytest.approx(
        live["steps"][0]["training_loss"], rel=1e-3
    )


def test_hidden_states_follow_the_layers_that_were_copied(one: Run) -> None:
    """Layers by number: the map goes with them, and a map by hand wins."""
    base = {**ONE_LAYER, "distillation": {"hidden_weight": 1.0}}
    first = one({"distill": {**base, "student": {"layers": [0]}}})
    mapped = {"hidden_weight": 1.0, "layer_map": {0: 0}}
    same = one({"distill": {**base, "student": {"layers": [0]}, "distillation": mapped}})
    mapped = {"hidden_weight": 1.0, "layer_map": {0: 1}}
    other = one({"distill": {**base, "student": {"layers": [0]}, "distillation": mapped}})
    assert first["steps"][0]["teacher_layers"] == [0]
    assert first["weights_hash"] == same["weights_hash"]
    assert first["weights_hash"] != other["weights_hash"]


@pytest.mark.parametrize("encoder", ["cnn", "lstm"])
def test_a_text_student(encoder: str, one: Run, tmp_path: Path) -> None:
    step = {**FAST, "text_student": {"encoder": encoder, "width": 8}}
    row = one({"distill": step}, output=tmp_path / "run", save_models=True)
    (folder,) = (tmp_path / "run" / "models").iterdir()
    assert AutoConfig.from_pretrained(folder).encoder == encoder
    again = one({"distill": step})  # reloaded from the cache of steps, as another class
    assert again["weights_hash"] == row["weights_hash"]
    other = one({"distill": {**step, "text_student": {"encoder": encoder, "width": 9}}})
    assert other["weights_hash"] != row["weights_hash"]


def test_a_model_of_ones_own(one: Run, model_folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    tiny_bert(seed=5).save_pretrained(own)
    tiny_tokenizer().save_pretrained(own)
    row = one({"distill": {**FAST, "model": str(own)}})
    assert row["steps"][0]["teacher_layers"] is None
    assert row["weights_hash"] != one({"distill": FAST})["weights_hash"]
    assert row["parameters"] == count_parameters(tiny_bert())


def test_bert_teaches_distilbert(one: Run, tmp_path: Path) -> None:
    """Another family: it has no token types, which the rows hold for the teacher."""
    config = DistilBertConfig(
        vocab_size=25, dim=32, n_layers=1, n_heads=4, hidden_dim=32, max_position_embeddings=64
    )
    torch.manual_seed(0)
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path / "own")
    tiny_tokenizer().save_pretrained(tmp_path / "own")
    step = {**FAST, "model": str(tmp_path / "own"), "distillation": {"hidden_weight": 1.0}}
    row = one({"distill": step}, output=tmp_path / "run", save_models=True)
    (folder,) = (tmp_path / "run" / "models").iterdir()
    assert AutoConfig.from_pretrained(folder).model_type == "distilbert"
    assert row["steps"][0]["updates"] == 6


def test_a_model_of_ones_own_with_other_words(
    model_folder: Path, write_data: Callable[..., Path], tmp_path: Path
) -> None:
    own, tokenizer = tmp_path / "own", tiny_tokenizer()
    tokenizer.add_tokens(["another"])
    tiny_bert().save_pretrained(own)
    tokenizer.save_pretrained(own)
    recipe = parse_recipe(
        {
            "model": str(model_folder),
            "data": {"path": str(write_data(rows=60)), "eval_fraction": 0.5},
            "steps": [{"distill": {**FAST, "model": str(own)}}],
        }
    )
    ((_, reason),) = run(recipe).failures
    assert "has another tokenizer than the teacher" in reason


def test_the_teacher_is_the_model_before_it_was_pruned(one: Run) -> None:
    prune = {"prune": {"sparsity": 0.9, "scope": "global"}}
    train = {**FAST, "distillation": {"alpha": 1.0}}
    row = one(prune, {"distill": train})
    pruned = row["steps"][1]["training_loss"]
    alone = one({"distill": train})  # a student that is its own teacher has nothing to learn
    # Not 0 where a GPU trains in bf16.
    limit = pruned / 2 if torch.cuda.is_available() else 1e-6
    assert 0 <= alone["steps"][0]["training_loss"] < limit < pruned


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"student": {"layers": 3}}, "layers is 3 and the teacher has 2"),
        ({"student": {"hidden": 12}}, "a multiple of"),
        ({"student": {}, "text_student": {}}, "are two students"),
        ({"augmentation": {}}, "set distillation.alpha to 1"),
        (
            {"text_student": {}, "distillation": {"hidden_weight": 1}},
            "no layers to compare",
        ),
        (
            {"cache": True, "distillation": {"attention_weight": 1}},
            "a cache keeps logits and hidden states",
        ),
        ({"distillation": {"temperature": 0}}, "temperature"),
        ({"distillation": {"alpha": 1.5}}, "alpha"),
    ],
)
def test_mistakes(step: dict[str, Any], message: str, one: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        one({"distill": {**FAST, **step}}, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_cache_that_cannot_be_written_costs_the_cache(one: Run, tmp_path: Path) -> None:
    live = one({"distill": ONE_LAYER})
    (tmp_path / "datasets" / "hfcompress-teachers").parent.mkdir(exist_ok=True)
    (tmp_path / "datasets" / "hfcompress-teachers").write_text("not a folder")
    kept = one({"distill": {**ONE_LAYER, "cache": True}})
    assert kept["weights_hash"] == live["weights_hash"]
