"""The source of a model or a data set: a hub name, a local path, or an installed package.

Three spellings are understood everywhere: ``org/name`` on the hub, a path on this machine, and
``pkg://PACKAGE/PATH`` for a file or folder that an installed package carries.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal
from urllib.parse import urlsplit

from hfcompress.config import nearest
from hfcompress.errors import SourceError

PACKAGE_PREFIX = "pkg://"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
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
        location: what the loading functions take: a path, or the hub name itself.
    """

    spec: str
    kind: Literal["hub", "local", "package"]
    location: str

    @property
    def path(self) -> Path | None:
        """The path on this machine; None for the hub."""
        return None if self.kind == "hub" else Path(self.location)


def resolve(spec: str, what: str) -> Source:
    """The source that a specification names; nothing is loaded or downloaded.

    Args:
        spec: a hub name, a local path or ``pkg://PACKAGE/PATH``.
        what: ``"model"`` or ``"data"``, for messages.

    Raises:
        SourceError: the path or package does not exist, and the text is not a hub name.
    """
    if spec.startswith(PACKAGE_PREFIX):
        return Source(spec, "package", str(_in_package(spec, what)))
    path = Path(spec).expanduser()
    if spec and path.exists():
        return Source(spec, "local", str(path.resolve()))
    if _HUB_NAME.fullmatch(spec) and not spec.endswith(_FILE_SUFFIXES):
        return Source(spec, "hub", spec)
    folder = path.parent
    hint = nearest(path.name, [item.name for item in folder.iterdir()]) if folder.is_dir() else ""
    if not hint.startswith("; did"):
        hint = "; give a path that exists, a hub name (org/name) or pkg://PACKAGE/PATH"
    raise SourceError(f"{what}: there is no file or folder {spec!r}{hint}")


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


def hub_reachable() -> bool:
    """Whether the hub's address answers; False at once without a network, so nothing retries."""
    from huggingface_hub import constants

    if constants.is_offline_mode() or any(name.lower() == "https_proxy" for name in os.environ):
        return not constants.is_offline_mode()  # through a proxy only a request can tell
    url = urlsplit(constants.ENDPOINT)
    try:
        address = (url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
        socket.create_connection(address, timeout=5).close()
    except OSError:
        return False
    return True


@contextmanager
def hub_errors(source: Source, what: str, instead: str) -> Iterator[None]:
    """Convert errors of the hub's clients into one `SourceError`.

    Args:
        source: what is being loaded; errors of local sources pass through unchanged.
        what: ``"model"`` or ``"data"``.
        instead: what to write to use a local copy (``"--set model=FOLDER"``).

    Raises:
        SourceError: the hub cannot be reached, or it has no such model or data set.
    """
    try:
        with _offline_unless_reachable(source):
            yield
    except Exception as error:
        if source.kind != "hub":
            raise
        names = {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}
        if names & {"RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError"}:
            reason = "the hub has no such name, or it needs a login"
        elif names & {
            "ConnectionError",
            "ConnectError",
            "TimeoutException",
            "OfflineModeIsEnabled",
            "LocalEntryNotFoundError",
            "HfHubHTTPError",
            "DatasetNotFoundError",
            "OSError",
        }:
            reason = "the hub cannot be reached and no cached copy is complete"
        else:
            raise
        raise SourceError(
            f"{what}: {source.spec!r} is a hub name and {reason}; "
            f"check the name and the connection, or use a local copy: {instead}"
        ) from None


@contextmanager
def _offline_unless_reachable(source: Source) -> Iterator[None]:
    """Set the hub's clients offline while no network answers: they would retry for 30 s."""
    if source.kind != "hub" or hub_reachable():
        yield
        return
    import datasets.config
    import huggingface_hub.constants

    modules: tuple[ModuleType, ...] = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


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
