"""``embedding:`` in a recipe: what storing vectors in fewer bytes loses, in rows and reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from hfcompress.errors import ConfigError
from hfcompress.measure.ranking import kept_neighbours
from hfcompress.recipes.schema import parse_recipe
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.run import run
from tests.tiny_embeddings import TEXTS, embedding_folder

SCORES = [4.0, 1.0, 3.5, 0.0, 2.0]


def plan(folder: Path, embedding: Any, **more: Any) -> dict[str, Any]:
    lines = ["sentence1\tsentence2\tscore"]
    lines += [
        f"{a}\t{b}\t{c}" for a, b, c in zip(TEXTS, TEXTS[1:] + TEXTS[:1], SCORES, strict=True)
    ]
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n")
    model = embedding_folder(folder / "model")
    data = {"model": str(model), "task": "sentence-similarity", "data": str(folder / "pairs.tsv")}
    return {**data, "embedding": embedding, **more}


def test_rows_have_the_metric_on_stored_vectors(tmp_path: Path) -> None:
    ways = [{"dimensions": 8, "precision": "int8"}, {"precision": "binary"}]
    (row,) = run(parse_recipe(plan(tmp_path, ways)), tmp_path / "run").rows
    small, bits = row["stored_vectors"]
    assert (small["vector_bytes"], small["float32_bytes"]) == (8, 128)
    assert (bits["vector_bytes"], bits["dimensions"]) == (4, 32)
    vectors = RunDirectory(tmp_path / "run").load_predictions(row["hash"])
    assert vectors is not None
    cut = vectors[:, :8]
    read = np.rint(cut / np.abs(cut).max(1, keepdims=True) * 127)
    unit = read / np.linalg.norm(read, axis=1, keepdims=True)
    cosines = (unit * np.roll(unit, -1, axis=0)).sum(1)
    assert small["value"] == pytest.approx(spearmanr(cosines, SCORES).statistic)
    assert small["drop"] == pytest.approx(row["value"] - small["value"])
    assert small["agreement"] == pytest.approx(kept_neighbours(read.astype(np.float32), vectors))
    for report in ("report.md", "report.html"):
        text = (tmp_path / "run" / report).read_text()
        assert "int8, 8 values" in text
        assert "8 of 128" in text


def test_one_way_may_stand_without_a_list_and_changes_the_row_alone(tmp_path: Path) -> None:
    ways: tuple[Any, ...] = ([], {"precision": "int8"})
    recipes = [parse_recipe(plan(tmp_path, way)) for way in ways]
    rows = [run(recipe).rows[0] for recipe in recipes]
    assert "stored_vectors" not in rows[0]
    assert len(rows[1]["stored_vectors"]) == 1
    assert rows[0]["hash"] != rows[1]["hash"]
    assert rows[0]["value"] == rows[1]["value"]


def test_refuses_what_the_model_does_not_have(
    tmp_path: Path, model_folder: Path, write_data: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=r"embedding.dimensions is 64 and the model's vectors"):
        run(parse_recipe(plan(tmp_path, {"dimensions": 64})))
    recipe = {"model": str(model_folder), "data": str(write_data()), "embedding": {}}
    with pytest.raises(ConfigError, match="the model gives none"):
        run(parse_recipe(recipe))
