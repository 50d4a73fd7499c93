"""The source of a model or a data set: a hub name, a local path, or an installed package.

These spellings are understood everywhere: ``org/name`` on the hub, ``org/name@REVISION`` for a
branch, tag or commit of it, the same behind ``hf://``, a path on this machine, and
``pkg://PACKAGE/PATH`` for a file or folder that an installed package carries.
`hfcompress.models.download` fetches from the hub.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hfcompress.config import nearest
from hfcompress.errors import SourceError

PACKAGE_PREFIX = "pkg://"
HUB_PREFIX = "hf://"
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:@([^@]+))?")
_FILE_SUFFIXES = (
    ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".gz", ".bz2", ".xz", ".zip",
)  # fmt: skip
# Weights, configuration and vocabulary decide what a model computes; a README does not.
_MODEL_FILES = (".safetensors", ".json", ".txt", ".model", ".bin")


@dataclass(frozen=True)
class Source:
    """A resolved source of a model or a data set.

    Attributes:
        spec: what the user wrote.
        kind: where it is.
        location: what the loading functions take: a path, or the hub name alone.
        revision: branch, tag or commit that was written behind the hub name.
    """

    spec: str
    kind: Literal["hub", "local", "package"]
    location: str
    revision: str | None = None

    @property
    def path(self) -> Path | None:
        """The path on this machine; None for the hub."""
        return None if self.kind == "hub" else Path(self.location)


def resolve(spec: str, what: str) -> Source:
    """The source that a specification names; nothing is loaded or downloaded.

    Args:
        spec: a hub name, a local path or ``pkg://PACKAGE/PATH``.
        what: ``"model"`` or ``"data"``; what ``hf://`` may name, and for messages.

    Raises:
        SourceError: the path or package does not exist, and the text is not a hub name.
    """
    if spec.startswith(PACKAGE_PREFIX):
        return Source(spec, "package", str(_in_package(spec, what)))
    if spec.startswith(HUB_PREFIX):
        return _hub_address(spec, what)
    path = Path(spec).expanduser()
    if spec and path.exists():
        return Source(spec, "local", str(path.resolve()))
    name = _HUB_NAME.fullmatch(spec)
    if name and not spec.endswith(_FILE_SUFFIXES):
        return Source(spec, "hub", name[1], name[2])
    folder = path.parent
    hint = nearest(path.name, [item.name for item in folder.iterdir()]) if folder.is_dir() else ""
    if not hint.startswith("; did"):
        hint = "; give a path that exists, a hub name (org/name, org/name@REVISION) or pkg://PACKAGE/PATH"
    raise SourceError(f"{what}: there is no file or folder {spec!r}{hint}")


def _hub_address(spec: str, what: str) -> Source:
    """The source that ``hf://[models/|datasets/]ORG/NAME[@REVISION]`` names."""
    prefixes = {"model": "models/", "data": "datasets/"}
    inner, own = spec[len(HUB_PREFIX) :], prefixes.get(what, "")
    other = next((item for item in prefixes.values() if item != own and inner.startswith(item)), "")
    name = _HUB_NAME.fullmatch(inner.removeprefix(own).removesuffix("/"))
    if other or name is None:
        raise SourceError(f"{what}: cannot parse {spec!r}; write hf://{own}ORG/NAME[@REVISION]")
    return Source(spec, "hub", name[1], name[2])


def _in_package(spec: str, what: str) -> Path:
    package, _, inner = spec[len(PACKAGE_PREFIX) :].partition("/")
    if not package.isidentifier():
        raise SourceError(f"{what}: cannot parse {spec!r}; write pkg://PACKAGE/PATH")
    # find_spec of a top-level name runs no code of the package, so a package installed without
    # its dependencies can still lend its files.
    found = importlib.util.find_spec(package)
    roots = list(found.submodule_search_locations or []) if found else []
    if not roots:
        raise SourceError(
            f"{what}: the package {package!r} is not installed; "
            f"write: pip install {package.replace('_', '-')}"
        )
    root = Path(roots[0]).resolve()
    path = (root / inner).resolve()
    if not path.is_relative_to(root):
        raise SourceError(f"{what}: {spec!r} leaves the package; write pkg://PACKAGE/PATH")
    if not path.exists():
        raise SourceError(
            f"{what}: the package {package!r} has no file or folder {inner!r} in {roots[0]}"
        )
    return path


def fingerprint_folder(path: Path) -> str:
    """Content hash of a model's folder: its weights, configuration and vocabulary.

    Args:
        path: a folder (or one file).

    Returns:
        32 hexadecimal digits; equal content gives equal digits in every folder.
    """
    files = (
        [path]
        if path.is_file()
        else sorted(
            item for item in path.iterdir() if item.is_file() and item.suffix in _MODEL_FILES
        )
    )
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()[:32]


def read_license(folder: Path | None) -> str | None:
    """Return the licence that the model card of a folder states; None without a readable one."""
    name = read_card(folder).get("license")
    return name if isinstance(name, str) else None


def read_card(folder: Path | None) -> dict[str, object]:
    """Return the metadata of the model card of a folder; empty without a readable one."""
    from huggingface_hub import ModelCard

    card = None if folder is None else folder / "README.md"
    if card is None or not card.is_file():
        return {}
    try:
        found: dict[str, object] = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, TypeError):
        return {}
    return found
