"""Recipes on a tiny model that several files of this folder run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfcompress.recipes.schema import Recipe, parse_recipe


@pytest.fixture
def make_recipe(model_folder: Path, write_data: Callable[..., Path]) -> Callable[..., Recipe]:
    path = write_data(rows=60)

    def make(**changes: Any) -> Recipe:
        data = {
            "name": "tiny",
            "model": str(model_folder),
            "data": {"path": str(path), "eval_fraction": 0.5},
            "steps": [{"finetune": {"max_steps": 3, "learning_rate": 1e-2}}, {"prune": {}}],
            "grid": {"prune.sparsity": [0, 0.5], "prune.scope": ["layer", "global"]},
        }
        return parse_recipe({**data, **changes})

    return make


@pytest.fixture
def table_recipe(make_recipe: Callable[..., Recipe]) -> Recipe:
    """No training: the table's protocol on any classifier."""
    return make_recipe(
        steps=[{"prune": {"targets": ["Linear"]}}],
        grid={"prune.sparsity": [0, 0.3, 0.9]},
        reference={"source": "published", "values": {0: 0.9, 0.3: 0.8}, "notes": {0.3: "hello"}},
        measure={"also": ["f1"], "batch_size": 7},
    )
