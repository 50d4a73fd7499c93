"""What the tests of recipe steps share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfcompress.recipes.schema import parse_recipe
from hfcompress.sweep.run import run


@pytest.fixture
def one(model_folder: Path, write_data: Callable[..., Path]) -> Callable[..., dict[str, Any]]:
    """Runs steps without a grid and gives the one row."""
    path = write_data(rows=60)

    def run_one(*steps: dict[str, Any], output: Path | None = None, **more: Any) -> dict[str, Any]:
        data = {"model": str(model_folder), "data": {"path": str(path), "eval_fraction": 0.5}}
        result = run(parse_recipe({**data, "steps": list(steps), **more}), output)
        assert not result.failures, result.failures
        row: dict[str, Any] = result.rows[0]
        return row

    return run_one
