"""Content hashes: what a result depends on, as 16 hexadecimal digits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from hfcompress.recipes.schema import Recipe
from hfcompress.recipes.step_configs import Step

# Raised when the meaning of a result changes (a default, too), so that older rows and models are
# not reused.
FORMAT = 1


def content_hash(data: Any) -> str:
    """Hash of plain data; the order of keys does not matter."""
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def root_hash(recipe: Recipe, model: str, train: str, seed: int) -> str:
    """Hash of where a trial starts: model, training rows, task, how text is cut, seed."""
    return content_hash([FORMAT, model, train, recipe.task, recipe.data.max_length, seed])


def prefix_hashes(root: str, steps: Sequence[Step]) -> list[str]:
    """Hash of the model before the first step, after the first, after the second ..."""
    hashes = [root]
    for step in steps:
        hashes.append(content_hash([hashes[-1], step.name, step.config.identity()]))
    return hashes


def row_hash(recipe: Recipe, last_prefix: str, measured: str) -> str:
    """Hash of a row: the final model, the rows it is measured on, and what is measured."""
    return content_hash([last_prefix, measured, recipe.measure.identity()])
