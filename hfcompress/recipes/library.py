"""The recipes that come with hfcompress, by name."""

from __future__ import annotations

import sys
from pathlib import Path

from hfcompress.errors import ConfigError


def recipes_folder() -> Path:
    """Where the shipped recipes lie: in a checkout, or where pip put them.

    Raises:
        ConfigError: neither is there.
    """
    checkout = Path(__file__).resolve().parents[2] / "recipes"
    installed = Path(sys.prefix) / "share" / "hfcompress" / "recipes"
    for folder in (checkout, installed):
        if folder.is_dir():
            return folder
    raise ConfigError(f"the shipped recipes are neither in {checkout} nor in {installed}")


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every shipped recipe."""
    return {path.stem: path for path in sorted(recipes_folder().glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file that a command's RECIPE argument names: a path, or a shipped recipe's name.

    Raises:
        ConfigError: neither.
    """
    path = Path(name)
    if path.exists():
        return path
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
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
