"""Check what a wheel and an sdist carry; `make dist` runs it on those that it has built.

python release.py dist
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).parent
PACKAGE = "hfcompress"


def main(folder: str) -> int:
    """Print what is missing or does not agree; returns the exit code."""
    built = sorted(Path(folder).glob("*.whl")) + sorted(Path(folder).glob("*.tar.gz"))
    if len(built) != 2:
        print(f"{folder} has {len(built)} files to check; build one wheel and one sdist")
        return 2
    problems = [
        f"{path.name} lacks {name}" for path in built for name in missing(names_in(path), ROOT)
    ]
    problems += versions_apart(ROOT)
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{', '.join(path.name for path in built)}: recipes, page and licence are in them")
    return 1 if problems else 0


def names_in(path: Path) -> set[str]:
    """The names of the files of a wheel or an sdist, without the sdist's folder."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return set(wheel.namelist())
    with tarfile.open(path) as sdist:
        return {name.partition("/")[2] for name in sdist.getnames()}


def missing(names: Collection[str], root: Path) -> list[str]:
    """The files of the package, but for caches, that are not among some names, and the licence."""
    ours = [
        path.relative_to(root).as_posix()
        for path in sorted((root / PACKAGE).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    absent = [name for name in ours if name not in names]
    has_licence = any(name.rpartition("/")[2] == "LICENSE" for name in names)
    return absent + ([] if has_licence else ["LICENSE"])


def versions_apart(root: Path) -> list[str]:
    """A sentence where the files that state a version do not agree."""
    places = {
        "pyproject.toml": r'^version = "(.*)"', f"{PACKAGE}/version.py": r'__version__ = "(.*)"',
        "CITATION.cff": r"^version: (.*)$",
    }  # fmt: skip
    found = {}
    for name, pattern in places.items():
        match = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        found[name] = match[1] if match else "none"
    if len(set(found.values())) == 1:
        return []
    return ["the versions differ: " + ", ".join(f"{name} {text}" for name, text in found.items())]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "dist"))
