"""README.md, CONTRIBUTING.md and docs/ agree with the code, the recipes and the benchmarks."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers

import hfcompress
from benchmarks.tables import PAGES, RESULTS, ROOT, render
from hfcompress.cli.arguments import make_parser
from hfcompress.config import Config
from hfcompress.recipes.library import find_recipe, headline, shipped_recipes
from hfcompress.recipes.schema import expand, load_recipe, parse_recipe
from hfcompress.recipes.yaml import parse_yaml

README = ROOT / "README.md"
DOCS = (
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
each_page = pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks_of(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page that are marked with one of some languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def blocks_of_all(*languages: str) -> list[Any]:
    return [
        pytest.param(text, id=f"{page.stem}-{index}")
        for page in DOCS
        for index, text in enumerate(blocks_of(page, *languages))
    ]


# --- tables of figures -------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_the_results(page: Path) -> None:
    text = read(page)
    assert text.count("<!-- results:") == text.count("<!-- end -->") >= 1
    assert render(text) == text, "run: python -m benchmarks.tables"


def test_every_result_is_shown() -> None:
    shown = {name for page in PAGES for name in re.findall(r"<!-- results: (\w+) -->", read(page))}
    assert shown == {path.stem for path in RESULTS.glob("*.json")}


def test_tables_of_results_are_on_the_pages_that_are_rendered() -> None:
    assert [page.name for page in DOCS if "<!-- results:" in read(page) and page not in PAGES] == []


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_are_what_benchmarks_write(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["benchmark"] == path.stem
    assert (ROOT / "benchmarks" / f"{path.stem}.py").is_file()
    for figure in data["figures"]:
        assert set(figure) >= {"name", "value", "unit", "low", "high", "target", "met"}
    assert data["environment"]["threads"] >= 1
    assert data["environment"]["cpu"]


# --- paths, links and pictures -----------------------------------------------------------------


@each_page
def test_every_path_that_it_names_exists(page: Path) -> None:
    named = set(
        re.findall(r"`((?:recipes|benchmarks|hfcompress|tests|docs)/[\w./-]+)`", read(page))
    )
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@each_page
def test_every_link_and_picture_exists(page: Path) -> None:
    text = read(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(linked), f"{page.name} links to {target}: no such heading"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    prose = re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_short_shows_a_picture_and_links_the_docs() -> None:
    text = read(README)
    assert len(text.splitlines()) <= 170
    assert text.count("![") == 1
    assert "(docs/index.md)" in text


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    text = read(ROOT / "mkdocs.yml").partition("\nnav:")[2]
    listed = re.findall(r"([\w/-]+\.md)$", text, re.MULTILINE)
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)


def test_sentences_of_the_troubleshooting_page_are_in_the_code() -> None:
    code = " ".join(path.read_text("utf-8") for path in (ROOT / "hfcompress").rglob("*.py"))
    code = re.sub(r'"\s+f?"', "", code)  # strings that go on in the next line
    rows = re.findall(r"^\| ([^|]+?) \| ", read(ROOT / "docs" / "troubleshooting.md"), re.MULTILINE)
    assert len(rows) > 10
    for sentence in rows[1:]:
        for part in sentence.split(" ... "):
            assert part in code, f"no error says {part!r}"


def test_figures_of_the_choosing_page_are_measured_ones() -> None:
    figures = re.findall(r"-?\d+\.\d+", read(ROOT / "docs" / "choosing.md").partition("cost us")[2])
    results = read(ROOT / "docs" / "results.md")
    assert len(figures) > 8
    assert [figure for figure in figures if figure not in results] == []


def test_the_config_page_is_what_the_configs_say() -> None:
    module = load_script(ROOT / "docs" / "make_config.py")
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), f"run: {module.COMMAND}"


def load_script(path: Path) -> Any:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@each_page
def test_every_class_that_it_names_exists(page: Path) -> None:
    if page.name in ("CONTRIBUTING.md", "config.md") or page.parent.name == "coming-from":
        return  # they name internal classes, and those of other libraries
    prose = re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`([A-Z][a-z]\w+)(?:\([^`]*\))?`", prose))
    rooms = (hfcompress, transformers, torch.nn, datasets)
    assert [name for name in sorted(named) if not any(hasattr(room, name) for room in rooms)] == []


# --- recipes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_valid_and_says_what_it_shows(name: str) -> None:
    path = shipped_recipes()[name]
    recipe = load_recipe(path)
    assert expand(recipe)
    command = "sensitivity" if name == "sensitivity" else "run"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(f"# hfcompress {command} recipes/{name}.y")
    assert 20 < len(headline(path)) <= 100
    assert headline(path).endswith("."), "the second line is a whole sentence"
    assert lines[2] == "#" or not lines[2].startswith("#"), "an empty comment line follows it"
    assert f"`{name}`" in read(ROOT / "docs" / "recipes.md")


def test_all_shipped_recipes_were_looked_at() -> None:
    assert len(shipped_recipes()) == len(list((ROOT / "recipes").iterdir()))


@pytest.mark.parametrize("text", blocks_of_all("yaml"))
def test_yaml_blocks_are_recipes(text: str) -> None:
    assert expand(parse_recipe({"model": "a-model", "data": "data/", **parse_yaml(text, "a page")}))


# --- commands ----------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command in the unmarked blocks of a page, without comments."""
    for text in blocks_of(page, ""):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


@each_page
def test_commands_parse_and_name_what_exists(page: Path) -> None:
    targets = set(re.findall(r"^(\w+):", read(ROOT / "Makefile"), re.MULTILINE))
    extras = set(re.findall(r"^(\w+) = \[", read(ROOT / "pyproject.toml"), re.MULTILINE))
    for words in commands(page):
        if words[0] == "make":
            assert words[1] in targets, words
        elif words[:2] == ["pip", "install"]:
            for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
                assert set(extra.split(",")) <= extras, words
        elif words[0] == "hfcompress":
            options = make_parser(words[1]).parse_args(words[1:])
            if options.command in ("run", "validate", "sensitivity"):
                recipe = options.recipe
                path = ROOT / recipe if recipe.endswith(".yaml") else find_recipe(recipe)
                load_recipe(path, options.set)
        else:
            assert words[0] in ("python", "cp"), f"cannot check the command {words}"


# --- Python ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", blocks_of_all("python"))
def test_python_blocks_compile_and_use_public_names_as_they_are(text: str) -> None:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "hfcompress":
            assert {alias.name for alias in node.names} <= set(hfcompress.__all__)
        elif isinstance(node, ast.ImportFrom):
            assert not f"{node.module}".startswith("hfcompress."), "use the public names"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            check_call(node)


def check_call(call: ast.Call) -> None:
    """Refuse an argument that the public function or config does not have."""
    assert isinstance(call.func, ast.Name)
    thing = getattr(hfcompress, call.func.id) if call.func.id in hfcompress.__all__ else None
    given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    if isinstance(thing, type) and issubclass(thing, Config):
        thing.from_dict({name: ast.literal_eval(value) for name, value in given.items()})
    elif thing is not None:
        known = inspect.signature(thing).parameters
        if not any(item.kind is item.VAR_KEYWORD for item in known.values()):
            assert set(given) <= set(known), ast.unparse(call)
