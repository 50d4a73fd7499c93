"""The recipes that come with hfcompress, by name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from hfcompress.errors import ConfigError


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes, which is a part of the package."""
    return Path(str(files("hfcompress.recipes"))) / "shipped"


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every shipped recipe."""
    return {path.stem: path for path in sorted(recipes_folder().glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """Return the file that a command's RECIPE argument names: a path, or the name of a shipped
    recipe, with or without ``.yaml``.

    Raises:
        ConfigError: neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    known = shipped.get(name.removesuffix(".yaml"))
    if known is not None:
        return known
    from hfcompress.config import nearest  # imports pydantic

    hint = nearest(path.stem, list(shipped))
    raise ConfigError(f"there is no recipe file {name!r} and no shipped recipe of that name{hint}")


def headline(path: Path) -> str:
    """What a recipe shows: the first line of its opening comment that is not a command."""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.lstrip("# ").strip()
        if line.startswith("#") and text and not text.startswith("hfcompress "):
            return text
        if not line.startswith("#"):
            break
    return ""
