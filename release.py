"""What `make dist` and `make floors` need.

python release.py source FOLDER   # what is built, README.md as a package index shows it
python release.py dist            # check what the wheel and the sdist carry
python release.py floors          # the lowest versions that pyproject.toml allows
"""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).parent
PACKAGE = "hfcompress"


def main(arguments: list[str]) -> int:
    """Do what the first argument says; returns the exit code."""
    what, *rest = arguments or ["dist"]
    if what == "floors":
        print("\n".join(floors((ROOT / "pyproject.toml").read_text(encoding="utf-8"))))
        return 0
    if what == "source":
        write_source(ROOT, Path(*rest))
        return 0
    return check(what)


def check(folder: str) -> int:
    """Print what a folder's wheel and sdist lack or do not agree on; returns the exit code."""
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


def write_source(root: Path, folder: Path) -> None:
    """Copy what is built into a folder; README.md as a package index can show it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(
        root / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__")
    )  # fmt: skip
    for name in ("pyproject.toml", "LICENSE", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(root / name, folder / name)
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (root / "README.md").read_text(encoding="utf-8")
    shown = standalone(text, project.get("urls", {}).get("Repository"))
    (folder / "README.md").write_text(shown, encoding="utf-8")


def standalone(text: str, repository: str | None) -> str:
    """Return a page whose links do not need the files beside it.

    Args:
        text: Markdown with links to files of the repository.
        repository: its address, which links are made absolute with; without one a link becomes its
            text and a picture goes.
    """

    def rewritten(link: re.Match[str]) -> str:
        picture, words, path = link.groups()
        if repository is None:
            return "" if picture else words
        kind = "raw" if picture else "blob"
        return f"{picture}[{words}]({repository.rstrip('/')}/{kind}/HEAD/{path})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)", rewritten, text)


def floors(pyproject: str) -> list[str]:
    """The package's own dependencies as pip's constraints, each at its lowest version.

    Args:
        pyproject: text of a pyproject.toml.
    """
    needed = "\n".join(tomllib.loads(pyproject)["project"]["dependencies"])
    return [f"{name}=={version}" for name, version in re.findall(r"([\w-]+)>=([\d.]+)", needed)]


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
    sys.exit(main(sys.argv[1:]))
