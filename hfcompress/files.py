"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from hfcompress.errors import OutputError


def cache_folder() -> Path:
    """Where results that may be computed again are kept: ``$HFCOMPRESS_CACHE``, or
    ``~/.cache/hfcompress``."""
    return Path(os.environ.get("HFCOMPRESS_CACHE") or Path.home() / ".cache" / "hfcompress")


def unwritable(path: Path, error: OSError) -> OutputError:
    """What to raise where the system refuses to write."""
    reason = error.strerror or error
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
