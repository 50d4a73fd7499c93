"""What a recipe's prune step calibrates on: training rows, and new text where that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hfcompress.calibration.batches import Calibration
from hfcompress.errors import CalibrationError, ConfigError, DataError
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.prune import prune
from hfcompress.recipes.schema import parse_recipe
from hfcompress.recipes.step_configs import DistillConfig
from hfcompress.steps.context import Context, StepReport
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.experiment import prepare
from hfcompress.sweep.run import run
from hfcompress.utils import Progress
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

STEP = {"method": "wanda", "sparsity": 0.5, "calibration_rows": 8, "augmented_rows": 12}


@pytest.fixture
def recipe(model_folder: Path, write_data: Callable[..., Path]) -> dict[str, Any]:
    data = {"path": str(write_data(rows=60)), "eval_fraction": 0.5}
    return {"model": str(model_folder), "data": data, "steps": [{"prune": STEP}]}


def context_of(recipe: dict[str, Any]) -> Context:
    bench = prepare(parse_recipe(recipe), Progress(), StepCache())
    return bench.context(
        bench.trials[0], 1, bench.start(bench.trials[0]), lambda: bench.loaded.model
    )


@pytest.fixture
def context(recipe: dict[str, Any]) -> Context:
    return context_of(recipe)


def texts(calibration: Calibration) -> set[tuple[int, ...]]:
    return {tuple(row[row != 0].tolist()) for b in calibration.batches for row in b["input_ids"]}


def test_new_text_comes_besides_the_training_rows(context: Context) -> None:
    plain, mixed = context.calibration(8, 0), context.calibration(8, 0, 12)
    assert (plain.rows, mixed.rows) == (8, 20)
    assert texts(plain) < texts(mixed)
    train = {tuple(row["input_ids"]) for row in context.training_rows("a test").rows}
    assert texts(plain) <= train
    assert not texts(mixed) <= train
    assert ["labels" in batch for batch in mixed.batches] == [True, False]


def test_new_text_is_drawn_from_the_seed_and_kept(context: Context) -> None:
    first = context.calibration(8, 0, 12)
    assert context.calibration(8, 0, 12) is first
    drawn = [texts(context.calibration(8, seed, 12)) for seed in (0, 1)]
    assert drawn[0] != drawn[1]
    context.shared.clear()
    assert texts(context.calibration(8, 0, 12)) == drawn[0]


def test_a_tokenizer_without_a_mask_token_gets_no_masks(context: Context) -> None:
    assert any(4 in text for text in texts(context.calibration(8, 0, 200)))
    context.shared.clear()
    context.processor.mask_token = None
    assert not any(4 in text for text in texts(context.calibration(8, 0, 200)))


def test_the_option_changes_what_a_recipe_prunes(recipe: dict[str, Any]) -> None:
    def weights(augmented: int) -> str:
        changed = {**recipe, "steps": [{"prune": {**STEP, "augmented_rows": augmented}}]}
        found: str = run(parse_recipe(changed)).rows[0]["weights_hash"]
        return found

    assert weights(12) != weights(0)


def test_rows_of_two_texts_are_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    lines = [f"good film\tthe plot is {word}\t{i % 2}" for i, word in enumerate(["bad"] * 20)]
    path = tmp_path / "pairs.tsv"
    path.write_text("\n".join(["a\tb\tlabel", *lines]) + "\n")
    data = {"path": str(path), "text": ["a", "b"], "eval_fraction": 0.2}
    with pytest.raises(DataError, match="works on rows of one text"):
        context_of({**recipe, "data": data}).calibration(8, 0, 12)


def test_without_a_recipe_there_is_no_text_to_make_more_of() -> None:
    batch = dict(tiny_tokenizer()(["good film"], return_tensors="pt"))
    with pytest.raises(CalibrationError, match="give Calibration the batches of augment_texts"):
        prune(
            tiny_bert(),
            PruningConfig(method="wanda", sparsity=0.5, augmented_rows=4),
            Calibration([{name: torch.as_tensor(value) for name, value in batch.items()}]),
        )


def test_methods_that_need_labels_refuse_text_without() -> None:
    with pytest.raises(ConfigError, match="method fisher needs labels"):
        PruningConfig.from_dict({"method": "fisher", "sparsity": 0.5, "augmented_rows": 4})


@pytest.mark.parametrize("student", [{"student": {"layers": 1}}, {"model": "org/other"}])
def test_a_new_student_has_no_pruned_layers(
    student: dict[str, Any], recipe: dict[str, Any]
) -> None:
    bench = prepare(parse_recipe(recipe), Progress(), StepCache())
    report = StepReport(0.5, ({"name": "bert.encoder.layer.0.output.dense"},))
    pruned = bench.start(bench.trials[0]).after(PruningConfig(sparsity=0.5), report)
    assert pruned.pruned_layers == ("bert.encoder.layer.0.output.dense",)
    same = pruned.after(DistillConfig.from_dict({}), StepReport())
    assert same.pruned_layers == pruned.pruned_layers
    assert pruned.after(DistillConfig.from_dict(student), StepReport()).pruned_layers == ()


def test_recovery_leaves_out_pruned_layers_that_are_gone(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe["steps"] = [
        {"prune": {"sparsity": 0.5}},
        {"shrink": {"layers": 1, "calibration_rows": 8}},
        {"recover": {"max_steps": 2}},
    ]
    (row,) = run(parse_recipe(recipe), tmp_path / "run").rows
    assert row["model_sparsity"] > 0.1
