"""Load from the hub: all files of one commit, other tries, and one sentence for each failure.

`from_hub` is the one way to the hub for models, tokenizers, configs and data sets: it asks which
commit a name means, lets a function load it, and converts whatever the hub's clients raise into a
`SourceError`. Where the hub gives no answer, what is in the cache is loaded.
"""

from __future__ import annotations

import io
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from hfcompress.errors import HfcompressError, SourceError
from hfcompress.models.hub import Source, fingerprint_folder, resolve
from hfcompress.models.hub_failures import (
    SILENCE,
    TRIES,
    Failure,
    What,
    cached_names,
    hub_api,
    of_the_hub,
    repo_type,
)
from hfcompress.utils import Progress

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo

Result = TypeVar("Result")
_WAIT = 2.0  # seconds before another try, twice as many before the next one
# Weights in the order in which transformers looks for them; the texts beside them.
_WEIGHTS = (
    r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?",
    r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?",
)
_TEXTS = r"README\.md|[^/]+\.(json|txt|model|jinja|tiktoken|py)|\d+_\w+/[^/]+\.(json|safetensors)"
_shown: ContextVar[Progress | None] = ContextVar("_shown", default=None)


@dataclass(frozen=True)
class Commit:
    """One commit of a source on the hub, or what the cache has of it.

    Attributes:
        name: of the repository; data sets by their full name (``nyu-mll/glue``, not ``glue``).
        what: a model, or a data set.
        branch: the branch, tag or commit that was written; ``main`` by default.
        revision: its commit; ``branch`` itself where only the cache can be read and does not know.
        files: paths of all of its files; empty where only the cache can be read.
    """

    name: str
    what: What
    branch: str
    revision: str
    files: tuple[str, ...] = ()

    def cached(self) -> Path | None:
        """Return the folder of this commit in the hub's cache; None where it is not there."""
        from huggingface_hub import constants

        name = f"{repo_type(self.what)}s--{self.name.replace('/', '--')}"
        folder = Path(constants.HF_HUB_CACHE) / name / "snapshots" / self.revision
        return folder if folder.is_dir() else None

    def fetch(self, paths: Sequence[str]) -> Path | None:
        """Download files into the hub's cache, with a bar of their bytes.

        Returns:
            The folder in the cache; None without files.

        The cache remembers which commit the branch was at, for times without a network.
        """
        if not paths:
            return None
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            self.name, repo_type=repo_type(self.what), revision=self.branch,
            allow_patterns=[re.sub(r"([*?\[])", r"[\1]", path) for path in paths],
            endpoint=hub_api().endpoint, tqdm_class=_bar(self.name),
        )  # fmt: skip
        return Path(folder)


@contextmanager
def showing_downloads(progress: Progress) -> Iterator[None]:
    """Give the bars of downloads to ``progress`` while the body runs, not to the terminal."""
    token = _shown.set(progress)
    try:
        yield
    finally:
        _shown.reset(token)


def from_hub(
    source: Source,
    what: What,
    instead: str,
    load: Callable[[Commit | None], Result],
    revision: str | None = None,
) -> Result:
    """Load from a source, which may lie on the hub.

    Args:
        source: where; of a local one ``load`` is called with None, and its errors pass through.
        what: a model or a data set.
        instead: what to write to use a local copy (``"--set model=FOLDER"``).
        load: loads from a commit; called again where a download was cut off.
        revision: branch, tag or commit; by default the source's own, or ``main``.

    Raises:
        SourceError: no such name or revision, one that this login may not read, or a hub that does
            not answer, where the cache has no complete copy.
    """
    if source.kind != "hub":
        return load(None)
    if revision and source.revision and revision != source.revision:
        raise SourceError(
            f"{what}: {source.spec!r} names one revision and the field revision another "
            f"({revision!r}); keep one of them"
        )
    revision = revision or source.revision or "main"
    failure = Failure(source, what, instead, revision)
    try:
        commit = _tried(failure, lambda: _commit(source, what, revision))
        return _tried(failure, lambda: load(commit))
    except _NoAnswer as no_answer:
        why = str(no_answer)
    try:
        with _offline():
            found = load(_cached_commit(source, what, revision))
    except Exception as error:
        if isinstance(error, HfcompressError) or not isinstance(error, (OSError, ValueError)):
            raise
        raise SourceError(f"{why}; {cached_names(what)}") from None
    progress = _shown.get()
    if progress is not None:
        progress.note(f"{source.location}: the copy in the cache is used, because {why}")
    return found


def fingerprint(source: Source, commit: Commit | None) -> str:
    """Return a hash of a model's folder; of one on the hub its name and commit."""
    if commit is None:
        return fingerprint_folder(Path(source.location))
    return f"{source.location}@{commit.revision}"


def model_files(commit: Commit) -> list[str]:
    """The files of a model's repository that loading it in transformers reads; none of a commit
    whose files are not known.

    Raises:
        SourceError: a repository without a config.json or without weights.
    """
    if not commit.files:
        return []
    if "config.json" not in commit.files:
        raise SourceError(
            f"model: {commit.name!r} has no config.json on the hub; give a model that "
            f"save_pretrained wrote"
        )
    for pattern in _WEIGHTS:
        weights = [path for path in commit.files if re.fullmatch(pattern, path)]
        if weights:
            texts = [path for path in commit.files if re.fullmatch(_TEXTS, path)]
            return [*texts, *weights]
    raise SourceError(
        f"model: {commit.name!r} has no weights on the hub (model.safetensors, or "
        f"pytorch_model.bin); give a model that save_pretrained wrote"
    )


def local_folder(spec: str | Path, what: What = "model") -> Path:
    """Return the folder that a specification names, downloaded whole where it is on the hub.

    Raises:
        SourceError: as `from_hub`.
    """
    path = Path(spec)
    if path.exists() or isinstance(spec, Path):
        return path
    source = resolve(str(spec), what)

    def load(commit: Commit | None) -> Path:
        if commit is None:
            return Path(source.location)
        folder = commit.fetch(commit.files) or commit.cached()
        if folder is None:
            raise FileNotFoundError(f"{commit.name} is not in the cache")
        return folder

    return from_hub(source, what, "give a FOLDER", load)


def fetch_model(source: Source, commit: Commit | None) -> tuple[Path | None, dict[str, str]]:
    """Download what loading a model reads.

    Returns:
        Its folder, None where only the cache can be read; and what ``from_pretrained`` takes.
    """
    if commit is None:
        return Path(source.location), {}
    return commit.fetch(model_files(commit)), {"revision": commit.revision}


class _NoAnswer(Exception):
    """The hub gave no answer, or one that may be another one later; the message is ours."""


def _tried(failure: Failure, load: Callable[[], Result]) -> Result:
    """Call a function, and call it again after a failure that may pass.

    Raises:
        SourceError: a failure that stays.
        _NoAnswer: one that may pass, after the last try.
    """
    if not hub_reachable():
        raise _NoAnswer(failure.unreachable())
    for number in range(TRIES):
        try:
            return load()
        except Exception as error:
            if not of_the_hub(error):
                raise
            lasting = failure.lasting(error)
            if lasting is not None:
                raise SourceError(lasting) from None
            sentence, passes = failure.passing(error)
            if not passes or number == TRIES - 1:
                raise _NoAnswer(sentence) from None
        time.sleep(_WAIT * 2**number)
    raise AssertionError("the loop returns or raises")


def _commit(source: Source, what: What, revision: str) -> Commit:
    api = hub_api()
    ask = api.dataset_info if what == "data" else api.model_info
    info: ModelInfo | DatasetInfo = ask(source.location, revision=revision, timeout=SILENCE)
    files = tuple(item.rfilename for item in info.siblings or ())
    name = info.id if what == "data" else source.location
    return Commit(name, what, revision, info.sha or revision, files)


def _cached_commit(source: Source, what: What, revision: str) -> Commit:
    """What the cache knows of a name: its full form, and the commit that a branch was at."""
    from huggingface_hub import constants

    cache, name = Path(constants.HF_HUB_CACHE), source.location
    if what == "data" and "/" not in name:
        full = [path.name.split("--") for path in cache.glob(f"datasets--*--{name}")]
        name = "/".join(full[0][1:]) if len(full) == 1 else name
    folder = f"{repo_type(what)}s--{name.replace('/', '--')}"
    known = cache / folder / "refs" / revision
    commit = known.read_text(encoding="utf-8").strip() if known.is_file() else revision
    return Commit(name, what, revision, commit)


def _bar(name: str) -> type | None:
    """A class of bars that tells bytes to the `Progress` shown; None draws the hub's own."""
    progress = _shown.get()
    if progress is None:
        return None
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    progress.stage(f"downloading {name}")
    shown: Progress = progress

    class Bar(tqdm):
        def __init__(self, *args: object, **options: object) -> None:
            options |= {"disable": False, "file": io.StringIO()}
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]

        def display(self, *_: object, **__: object) -> None:
            if self.unit == "B" and self.total:
                shown.bytes(int(self.n), int(self.total))

    return Bar


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
def _offline() -> Iterator[None]:
    """Set the hub's clients offline: they read the cache, and would retry for minutes."""
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
