"""Small helpers of all rooms: optional packages, files, locks, quiet libraries, `Progress`."""

from __future__ import annotations

import glob
import hashlib
import importlib
import importlib.util
import json
import logging
import os
import re
import socket
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from typing_extensions import TypeIs

from hfcompress.errors import MissingExtraError, ModelError, OutputError

if TYPE_CHECKING:  # it takes seconds to import
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

Plain = TypeVar("Plain", covariant=True)
Device = Literal["cpu", "cuda", "mps"]
"""Where models train and predict."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: what to import, dots allowed (``"onnxruntime.quantization"``).
        extra: the extra of hfcompress that brings it (``"onnx"``).

    Raises:
        MissingExtraError: the module is not installed; the message holds the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name.split(".")[0]):
            raise  # the module is there, something that it imports is not
        raise _missing(module, extra) from None


def check_installed(module: str, extra: str) -> None:
    """Refuse to go on without an optional package; nothing is imported.

    Raises:
        MissingExtraError: it is not installed; the message holds the pip command.
    """
    if importlib.util.find_spec(module) is None:
        raise _missing(module, extra)


def _missing(module: str, extra: str) -> MissingExtraError:
    return MissingExtraError(
        f"{module.split('.')[0]} is not installed; write: pip install 'hfcompress[{extra}]'"
    )


def is_conv1d(module: object) -> TypeIs[Conv1D]:
    """Whether a module is a ``Conv1D`` of transformers; does not import transformers."""
    return _is_instance(module, "transformers.pytorch_utils", "Conv1D")


def is_pretrained(model: object) -> TypeIs[PreTrainedModel]:
    """Whether a model is a ``PreTrainedModel``; does not import transformers."""
    return _is_instance(model, "transformers.modeling_utils", "PreTrainedModel")


def check_pretrained(model: object, what: str, instead: str) -> None:
    """Refuse a torch module that is none of transformers.

    Args:
        model: anything.
        what: which takes transformers models alone, as the subject of a sentence.
        instead: what takes any module.

    Raises:
        ModelError: such a module.
    """
    if _is_instance(model, "torch.nn", "Module") and not is_pretrained(model):
        raise ModelError(
            f"{what} takes transformers models, not a {type(model).__name__}; {instead}"
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of ``torch.compile`` and peft, or the model itself."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and _is_instance(model, "peft", "PeftModel"):
            inner = model.get_base_model()  # type: ignore[operator]
        if inner is None:
            return model
        model = inner


def _is_instance(value: object, module: str, name: str) -> bool:
    """``isinstance`` by name: before the module is loaded, no object of its classes exists."""
    cls = getattr(sys.modules.get(module), name, None)
    return cls is not None and isinstance(value, cls)


def cache_folder() -> Path:
    """Where results that may be computed again are kept: ``$HFCOMPRESS_CACHE``, or
    ``~/.cache/hfcompress``."""
    return Path(os.environ.get("HFCOMPRESS_CACHE") or Path.home() / ".cache" / "hfcompress")


def unwritable(path: Path, error: Exception) -> OutputError:
    """What to raise where the system refuses to write."""
    reason = getattr(error, "strerror", None) or error
    return OutputError(f"{path} cannot be written ({reason}); choose a writable folder")


def atomic_write(path: str | Path, content: str | bytes) -> Path:
    """Write a file under a temporary name beside it, then rename it into place.

    The rename is atomic on one file system: a crash or a full disk leaves the old file as it was.

    Args:
        path: where the file goes; missing parent folders are made.
        content: text (written as UTF-8, line ends untouched) or bytes.

    Returns:
        The path written.

    Raises:
        OutputError: the folder or the file cannot be written.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Not tempfile: it makes files that only their owner can read.
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from None
    return path


# Control characters but for line ends and tabs, and those that turn the direction of text.
_INVISIBLE = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")


def visible(text: str) -> str:
    """Text with its control characters spelt out: in a terminal they would be commands."""
    return _INVISIBLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> int:
    """``"10MB"`` -> 10 000 000; without a unit bytes.

    Raises:
        ValueError: the text is not a size.
    """
    found = _SIZE.fullmatch(text)
    unit = (found[2] or "B").upper() if found else ""
    unit = unit if unit in _UNITS else f"{unit}B"
    if found is None or unit not in _UNITS or not float(found[1]):
        raise ValueError(
            f"cannot parse size {text!r}; use 10MB, 500KB, 1.5MiB or a number of bytes"
        )
    return round(float(found[1]) * _UNITS[unit])


def size_text(size: float) -> str:
    """Format a byte count."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 1e3:.3g} KB"


DIGESTS = "digests.json"


def write_digests(folder: Path) -> None:
    """Write the SHA-256 of every file of a folder into its ``digests.json``."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != DIGESTS]
    found = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    atomic_write(folder / DIGESTS, json.dumps(found, indent=2) + "\n")


def damaged_files(folder: Path) -> list[str] | None:
    """The files of a folder that are missing or differ from its ``digests.json``; None where it
    has none."""
    path = folder / DIGESTS
    if not path.is_file():
        return None
    try:
        digests = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(digests, dict)
    except (ValueError, AssertionError):
        return [DIGESTS]
    return different_files(folder, digests)


def different_files(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """The names of files that are missing or whose SHA-256 differs from the one given."""
    files = {name: folder / name for name in digests}
    return [
        name for name, file in files.items()
        if not has_digest(file, digests[name])
    ]  # fmt: skip


def has_digest(path: Path, digest: str | None) -> bool:
    """Whether a path is a file with this SHA-256; not where it cannot be read."""
    try:
        return path.is_file() and file_digest(path) == digest
    except OSError:
        return False


def file_digest(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def locked(path: Path, refuse: str | None, note: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock file while the body runs. The system frees it when its process ends, however.

    A file beside it says which process holds it: host, process id and start.

    Args:
        path: the lock file; stays when the lock is free again.
        refuse: what to do where another process holds it: the end of a sentence that refuses;
            None waits until it is free.
        note: receives who is waited for.

    Raises:
        OutputError: another process holds it and ``refuse`` is given, or the file cannot be
            written.
    """
    from filelock import FileLock, Timeout

    holder, lock = path.with_name(f"{path.name}.json"), FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if refuse is not None:
                raise OutputError(
                    f"{path.parent} is in use by {_holder(holder)}; {refuse}"
                ) from None
            note(f"waiting for {_holder(holder)}, which uses {path.parent}")
            lock.acquire()
    except OSError as error:
        raise unwritable(path, error) from None
    try:
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        own = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
        for left in path.parent.glob(f".{glob.escape(holder.name)}.*.tmp"):  # of a killed process
            left.unlink(missing_ok=True)
        atomic_write(holder, json.dumps(own) + "\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    """The process that a lock's file names, in words."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return f"process {data['pid']} on {data['host']} since {data['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # it has the lock and has not written its name yet


def quiet_libraries() -> None:
    """Turn off the logs below errors, the bars and the warnings of the Hugging Face libraries.

    The bars of downloads stay. Called by the command line and the benchmarks; the package itself
    changes no global setting.
    """
    # torchao 0.18, 2026-11: where it is installed, transformers imports it, and it tells of the
    # kernels that it does not find and of what torch deprecates in it.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets
    import huggingface_hub.utils as hub
    import transformers

    logs: Any = transformers.utils.logging
    logs.set_verbosity_error()
    logs.disable_progress_bar()  # of the hub, too
    if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
        hub.enable_progress_bars()  # type: ignore[attr-defined]
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|datasets|accelerate|optimum)\b")


class _HasToDict(Protocol[Plain]):
    def to_dict(self) -> Plain: ...


class FormerPlain:
    """Gives a report the former name of its ``to_dict``, kept for one release."""

    def plain(self: _HasToDict[Plain]) -> Plain:
        """As ``to_dict``."""
        return self.to_dict()


class Progress:
    """Receives what happens; this base class keeps silent. Override what you want to show."""

    def sweep(self, done: int, total: int) -> None:
        """``done`` of ``total`` trials have a row."""

    def stage(self, text: str) -> None:
        """A new piece of work begins."""

    def work(self, done: int, total: int) -> None:
        """How far the piece of work is."""

    def bytes(self, done: int, total: int) -> None:
        """How far a download is; by default a piece of work like any other."""
        self.work(done, total)

    def note(self, text: str) -> None:
        """Something the user should know."""

    def row(self, row: Row) -> None:
        """A trial is finished."""


Fields = dict[str, Any]
"""Plain data by field name, as YAML and JSON hold it."""

Row = Fields
"""One row of results.csv and results.jsonl."""

ShowProgress = Callable[[str, int, int], None]
"""Receives stage, count and total."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing."""
