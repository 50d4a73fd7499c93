"""What is read back from a run's folder is what was written: each line and small file ends in a
digest of itself.

::

    {"hash": "...", ..., "digest": "0f3a5d2e9b7c4a18"}      a line of results.jsonl
    # digest: 0f3a5d2e9b7c4a18                              the last line of recipe.yaml

Folders of earlier versions have none. Lines without one may only precede those that have it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from hfcompress.errors import OutputError
from hfcompress.utils import Fields, Row

_AT_END = re.compile(rb', "digest": "([0-9a-f]{16})"\}\s*$')
_COMMENT = re.compile(r"# digest: (\S*)\s*$")


def json_line(row: Fields, nan: bool = False) -> bytes:
    """A row as a line of JSON with its digest."""
    plain = json.dumps(row, ensure_ascii=False, allow_nan=nan).encode()
    return plain[:-1] + f', "digest": "{_digest(plain)}"}}\n'.encode()


def read_lines(path: Path, field: str) -> Iterator[tuple[int, Row | None]]:
    """Number and row of each line that is not empty; None where it is not a row as written, or
    where a crash has cut off its end.

    Args:
        path: nothing where there is no such file.
        field: that each row has.
    """
    for number, _, line in checked_lines(path):
        row = None if line is None else _row(line, field)
        if row is not None and line is not None and _AT_END.search(line):
            row.pop("digest")
        yield number, row


def checked_lines(path: Path) -> Iterator[tuple[int, int, bytes | None]]:
    """Number, place in the file and bytes of each line that is not empty, without parsing it; None
    where it differs from its digest, lacks one that earlier lines have, or was cut short."""
    has_digests, begin = False, 0
    if not path.is_file():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                end = _AT_END.search(line)
                has_digests = has_digests or end is not None
                same = not has_digests if end is None else _is_of(line, end)
                yield number, begin, line if same and line.endswith(b"\n") else None
            begin += len(line)


def _is_of(line: bytes, end: re.Match[bytes]) -> bool:
    """Whether a line's digest is that of the rest."""
    return _digest(line[: end.start()] + b"}") == end[1].decode()


def _row(line: bytes, field: str) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and field in row else None


def with_digest(data: object) -> object:
    """Plain data for a JSON file; a mapping gets its digest."""
    return {**data, "digest": _digest_of(data)} if isinstance(data, dict) else data


def without_digest(data: object, path: Path) -> object:
    """Plain data of a JSON file, without the digest that it may have.

    Raises:
        OutputError: it differs from what was written.
    """
    if not isinstance(data, dict) or "digest" not in data:
        return data
    plain = {name: value for name, value in data.items() if name != "digest"}
    if data["digest"] != _digest_of(plain):
        raise OutputError(f"{path} differs from what was written; remove it, or the whole folder")
    return plain


def with_comment(text: str) -> str:
    """YAML with its digest as a comment in the last line."""
    return f"{text}# digest: {_digest(text.encode())}\n"


def check_comment(path: Path) -> str:
    """Return the text of a YAML file without its digest, which older files lack.

    Raises:
        OutputError: it is not text, or differs from what was written.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise OSError
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        raise OutputError(f"{path} cannot be read as text; remove it and run again") from None
    end = _COMMENT.search(text)
    if end is None:
        return text
    if _digest(text[: end.start()].encode()) != end[1]:
        raise OutputError(
            f"{path} differs from what was written; run the recipe again or, if you changed the "
            f"file on purpose, remove its last line"
        )
    return text[: end.start()]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _digest_of(data: object) -> str:
    return _digest(json.dumps(data, sort_keys=True).encode())
