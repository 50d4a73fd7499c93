"""A reranker through a recipe: trained, distilled, pruned, shrunk, quantized, and loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hfcompress
from hfcompress.errors import ConfigError
from hfcompress.recipes.schema import parse_recipe
from hfcompress.sweep.run import run
from tests.tasks.ranked import PAIRS, reranker_folder, write_rankings

pytestmark = pytest.mark.usefixtures("shared_exports")
DISTILL = {
    "epochs": 2, "batch_size": 10, "learning_rate": 1e-3, "student": {"layers": 1},
    "distillation": {"alpha": 0.5, "margin_weight": 1, "listwise_weight": 1, "hidden_weight": 1},
}  # fmt: skip


def plan(folder: Path, *steps: dict[str, Any], labels: int = 1, **more: Any) -> dict[str, Any]:
    data = write_rankings(folder / "data.tsv", queries=24)
    options = {"initializer_range": 0.02} if labels > 1 else {}
    return {
        "model": str(reranker_folder(folder / "model", labels, **options)), "task": "reranking",
        "data": {"path": str(data), "eval_fraction": 0.5}, "steps": list(steps), **more,
    }  # fmt: skip


def test_a_new_head_learns_to_rank_and_passes_through_the_steps(tmp_path: Path) -> None:
    steps: list[dict[str, Any]] = [
        {"finetune": {"epochs": 10, "batch_size": 10, "learning_rate": 3e-3}},
        {"distill": {**DISTILL, "cache": True}},
        {"prune": {"sparsity": 0.2}},
        {"quantize": {"backend": "onnxruntime", "reduce_range": True}},
    ]
    recipe = plan(tmp_path, *steps, labels=2, save_models=True, measure={"every_step": True})
    found = run(parse_recipe(recipe), tmp_path / "run")
    assert not found.failures, found.failures
    values = [row["value"] for row in found.rows]
    assert found.rows[0]["metric"] == "map"
    assert values[0] > 0.95  # a good word is relevant, whatever the query
    small = found.rows[-1]
    assert small["n"] == 12
    assert small["drop"] == pytest.approx(values[0] - small["value"])
    assert small["macs"] < 0.6 * found.rows[0]["macs"]
    for row in found.rows:
        models = (tmp_path / "run" / "models").iterdir()
        folder = next(path for path in models if row["hash"][:8] in path.name)
        card = (folder / "README.md").read_text()
        assert "pipeline_tag: text-ranking" in card
        assert ".predict([" in card
        ours: Any = hfcompress.load(folder)
        scores = ours.predict(PAIRS)
        if row is not small:
            library = pytest.importorskip("sentence_transformers")
            theirs = library.CrossEncoder(str(folder), device="cpu").predict(PAIRS)
            np.testing.assert_allclose(scores, theirs, atol=1e-6)
        else:
            assert scores[0] > scores[1]


def test_unevenly_shrunk_rerankers_load_as_cross_encoders(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    shrink = {"shrink": {"macs": 0.6, "calibration_rows": 20, "table_rows": 8}}
    found = run(parse_recipe(plan(tmp_path, shrink, save_models=True)), tmp_path / "run")
    assert not found.failures, found.failures
    (folder,) = (tmp_path / "run" / "models").iterdir()
    theirs = library.CrossEncoder(str(folder), device="cpu").predict(PAIRS)
    ours: Any = hfcompress.load(folder)
    np.testing.assert_allclose(ours.predict(PAIRS), theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"recover": {"distillation": {"margin_weight": 1}}}, "are for a distill step"),
        ({"distill": {"distillation": {"listwise_weight": 1}}}, "the passages of a query"),
    ],
)
def test_refuses_to_compare_passages_elsewhere(
    tmp_path: Path, step: dict[str, Any], message: str
) -> None:
    recipe = plan(tmp_path, step)
    if "distill" in step:
        recipe |= {"task": "text-classification"}
        recipe["data"]["text"] = ["query", "passage"]
        recipe["model"] = str(reranker_folder(tmp_path / "classes", labels=2))
    with pytest.raises(ConfigError, match=message):
        run(parse_recipe(recipe), tmp_path / "run")
