"""The README says what the repository holds and what the benchmarks measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.tables import PAGES, README, RESULTS, ROOT, render
from hfcompress.recipes.library import headline, shipped_recipes
from hfcompress.recipes.schema import expand, load_recipe

TEXT = README.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- results:") == text.count("<!-- end -->") >= 2
    assert render(text) == text, "run: python -m benchmarks.tables"


def test_every_result_is_shown() -> None:
    shown = {
        name
        for page in PAGES
        for name in re.findall(r"<!-- results: (\w+) -->", page.read_text(encoding="utf-8"))
    }
    assert shown == {path.stem for path in RESULTS.glob("*.json")}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_are_what_benchmarks_write(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["benchmark"] == path.stem
    assert (ROOT / "benchmarks" / f"{path.stem}.py").is_file()
    for figure in data["figures"]:
        assert set(figure) >= {"name", "value", "unit", "low", "high", "target", "met"}
    assert data["environment"]["threads"] >= 1
    assert data["environment"]["cpu"]


def test_every_path_that_it_names_exists() -> None:
    named = set(re.findall(r"`((?:recipes|benchmarks|hfcompress|tests|docs)/[\w./-]+)`", TEXT))
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_picture_that_it_shows_exists() -> None:
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", TEXT)
    assert shown
    assert [path for path in shown if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_valid_and_says_what_it_shows(name: str) -> None:
    path = shipped_recipes()[name]
    recipe = load_recipe(path)
    assert expand(recipe)
    command = "sensitivity" if name == "sensitivity" else "run"
    assert path.read_text(encoding="utf-8").startswith(f"# hfcompress {command} recipes/{name}.y")
    assert 20 < len(headline(path)) <= 100
    assert name in TEXT


def test_all_shipped_recipes_were_looked_at() -> None:
    assert len(shipped_recipes()) == len(list((ROOT / "recipes").iterdir()))
