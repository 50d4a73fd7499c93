"""The folder of a run: append-only rows, atomic files, and who may write to it.

::

    results.jsonl      one row a trial, appended as it comes (the only file that is read back)
    recipe.yaml        the recipe with every default spelt out
    environment.json   versions, processor, threads
    predictions/       logits of each trial (safetensors), named by content hash
    weights.json       weight histograms before and after
    models/            the models, if the recipe keeps them
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from hfcompress.errors import OutputError
from hfcompress.utils import Row, atomic_write

ROWS = "results.jsonl"


class RunDirectory:
    """Rows and files of one recipe's run.

    Args:
        path: the folder; made when the first file is written.

    Raises:
        OutputError: it cannot be written, or is a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        _check_writable(path)

    @property
    def rows_file(self) -> Path:
        """``results.jsonl``."""
        return self.path / ROWS

    def rows(self) -> list[Row]:
        """The finished rows, in the order in which they came.

        A last line that a crash cut short is left out, with a word in ``notes``; its trial runs
        again.

        Raises:
            OutputError: a line in the middle that is not a row: another program wrote to the file.
        """
        if not self.rows_file.is_file():
            return []
        lines = self.rows_file.read_bytes().split(b"\n")
        rows = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = _parse(line)
            if row is not None and (number < len(lines)):
                rows.append(row)
            elif number >= len(lines) - 1:
                self.notes.append(f"{ROWS}: its last line was cut short; that trial runs again")
            else:
                raise OutputError(
                    f"{self.rows_file}, line {number}, is not a result row; "
                    f"correct or remove the line, or choose another --output"
                )
        return rows

    def claim(self, hashes: Collection[str]) -> list[Row]:
        """The rows that belong to this recipe's trials.

        Args:
            hashes: content hashes of the recipe's trials.

        Raises:
            OutputError: rows of another recipe (or of the same on other data) are in the folder.
        """
        rows = self.rows()
        foreign = [row for row in rows if row.get("hash") not in hashes]
        if foreign:
            raise OutputError(
                f"{self.path} contains results of another recipe, model or data "
                f"({len(foreign)} of {len(rows)} rows); choose another --output or remove it"
            )
        return rows

    def append(self, row: Row) -> None:
        """Add a row; on disk when this returns."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._drop_cut_line()
        line = json.dumps(row, ensure_ascii=False, allow_nan=False)
        with self.rows_file.open("ab") as stream:
            stream.write(line.encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _drop_cut_line(self) -> None:
        if not self.rows_file.is_file():
            return
        data = self.rows_file.read_bytes()
        if data and not data.endswith(b"\n"):
            atomic_write(self.rows_file, data[: data.rfind(b"\n") + 1])

    def write_text(self, name: str, text: str) -> None:
        """Write a small file atomically."""
        atomic_write(self.path / name, text)

    def write_json(self, name: str, data: object) -> None:
        """Write plain data as JSON, atomically."""
        self.write_text(name, json.dumps(data, indent=2, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Read plain data back; None where it was never written."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def save_predictions(self, key: str, logits: NDArray[np.float32]) -> None:
        """Keep the logits [rows, classes] of a trial or of a dense model."""
        path = self.path / "predictions" / f"{key}.safetensors"
        atomic_write(path, save({"logits": np.ascontiguousarray(logits)}))

    def load_predictions(self, key: str) -> NDArray[np.float32] | None:
        """The logits kept under a key; None where there are none."""
        path = self.path / "predictions" / f"{key}.safetensors"
        if not path.is_file():
            return None
        logits: NDArray[np.float32] = load_file(str(path))["logits"]
        return logits


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "hash" in row else None


def _check_writable(path: Path) -> None:
    """Refuse a folder that cannot be written, before any work and without making it."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file; give --output a folder")
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not os.access(existing, os.W_OK | os.X_OK) or _read_only(existing):
        raise OutputError(f"{existing} is read-only; give --output a folder that can be written")


def _read_only(folder: Path) -> bool:
    # Root passes os.access on any folder; the mode and the mount still say what is meant.
    flags = os.statvfs(folder).f_flag if hasattr(os, "statvfs") else 0
    return bool(flags & getattr(os, "ST_RDONLY", 1)) or not folder.stat().st_mode & 0o222
