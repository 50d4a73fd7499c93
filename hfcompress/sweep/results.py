"""The folder of a run: append-only rows, atomic files, and who may write to it.

::

    results.jsonl      one row a finished trial, appended as it comes
    failures.jsonl     one row a failed trial: its settings, reason and traceback
    recipe.yaml        the recipe with every default spelt out
    recipe.written.yaml  the recipe as it was written, where it was a file
    environment.json   versions, processor, threads
    predictions/       logits of each trial (safetensors), named by content hash, and what they
                       are compared with
    weights.jsonl      weight histograms before and after, a line a model (former: weights.json)
    models/            the models, if the recipe keeps them
    .lock              held by the process that runs the recipe; .lock.json names it
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save

from hfcompress.errors import OutputError
from hfcompress.storage.temporary import remove_left_roots, remove_leftovers
from hfcompress.sweep.digests import json_line, read_lines, with_digest, without_digest
from hfcompress.sweep.kept_weights import KeptWeights
from hfcompress.utils import Fields, Row, atomic_write, locked, unwritable

ROWS = "results.jsonl"
FAILURES = "failures.jsonl"
WEIGHTS = "weights.jsonl"
LOCK = ".lock"
REFERENCES = "references"


@dataclass(frozen=True)
class References:
    """What the logits of a run are compared with.

    Attributes:
        values: of the measured rows, as their task has them; empty where units are compared.
        rows: content hash of the measured rows.
        task: name of the task.
    """

    values: NDArray[Any]
    rows: str
    task: str


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
        self._is_locked = False
        self._weights_kept: set[str] | None = None
        _check_writable(path)

    @property
    def rows_file(self) -> Path:
        """``results.jsonl``."""
        return self.path / ROWS

    @contextmanager
    def locked(self, wait: bool, note: Callable[[str], None]) -> Iterator[None]:
        """Keep other processes out of the folder while the body runs; inside of it, do nothing.

        Args:
            wait: wait for another process that is at work here.
            note: receives who is waited for.

        Raises:
            OutputError: another process is at work here and ``wait`` is False.
        """
        if self._is_locked:
            yield
            return
        refuse = None if wait else "wait for it with --wait, or choose another --output"
        with locked(self.path / LOCK, refuse, note):
            remove_left_roots()
            for folder in (self.path, self.path / "models", self.path / "predictions"):
                remove_leftovers(folder, files=True)
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    def rows(self) -> list[Row]:
        """The finished rows in the order in which they came, the last of each trial.

        A last line that a crash cut short is left out, with a word in ``notes``; its trial runs
        again.

        Raises:
            OutputError: a line in the middle that is not a row: another program wrote to the file.
        """
        found = list(read_lines(self.rows_file, "hash"))
        rows: dict[tuple[object, ...], Row] = {}
        for place, (number, row) in enumerate(found):
            if row is not None:
                # Rows of a bench share the hash of their point, one for each model and engine.
                rows[str(row["hash"]), row.get("model"), row.get("engine")] = row
            elif place == len(found) - 1:
                self.notes.append(
                    f"{ROWS}: its last line was cut short or damaged; that trial runs again"
                )
            else:
                raise OutputError(
                    f"{self.rows_file}, line {number}, is not a result row as it was written; "
                    f"remove the line, or choose another --output"
                )
        return list(rows.values())

    def failures(self) -> list[Row]:
        """The rows of trials that failed, the last of each trial."""
        found = self._kept(FAILURES, "hash")
        return list({str(row["hash"]): row for row in found}.values())

    def _kept(self, name: str, field: str) -> Iterator[Row]:
        """The rows of a file; a line that is not as it was written is left out, with a note."""
        for number, row in read_lines(self.path / name, field):
            if row is not None:
                yield row
            else:
                self._note_damage(name, number)

    def _note_damage(self, name: str, number: int) -> None:
        note = f"{name}, line {number}, was cut short or damaged and is left out"
        self.notes += [] if note in self.notes else [note]

    def keep_failures(self, hashes: Collection[str]) -> list[Row]:
        """Drop the rows of failed trials but for these, and return what is left."""
        rows, path = self.failures(), self.path / FAILURES
        kept = [row for row in rows if row["hash"] in hashes]
        if rows and not kept:
            path.unlink()
        elif len(kept) < len(rows):
            atomic_write(path, b"".join(map(json_line, kept)))
        return kept

    def every_row(self) -> list[Row]:
        """The rows of finished trials and of those that failed, without their tracebacks."""
        rows = self.rows()
        finished = {row["hash"] for row in rows}
        failed = [row for row in self.failures() if row["hash"] not in finished]
        return rows + [{key: row[key] for key in row if key != "trace"} for row in failed]

    def claim(self, hashes: Collection[str]) -> list[Row]:
        """The rows that belong to this recipe's trials.

        Args:
            hashes: content hashes of the recipe's trials.

        Raises:
            OutputError: rows of another recipe (or of the same on other data) are in the folder.
        """
        rows = self.rows()
        foreign = [row for row in rows if row["hash"] not in hashes]
        if foreign:
            raise OutputError(
                f"{self.path} contains results of another recipe, model or data "
                f"({len(foreign)} of {len(rows)} rows); choose another --output or remove it"
            )
        return rows

    def append(self, row: Row) -> None:
        """Add a row; on disk when this returns."""
        self._append(self.rows_file, [json_line(row)])

    def append_failure(self, row: Row) -> None:
        """Add the row of a trial that failed."""
        self._append(self.path / FAILURES, [json_line(row)])

    def append_weights(self, entries: Mapping[str, Fields]) -> None:
        """Keep the weights' histograms and pictures of models, by key; kept ones are not written
        again."""
        if self._weights_kept is None:
            self._weights_kept = set(self.weights())
        new = {key: entry for key, entry in entries.items() if key not in self._weights_kept}
        self._append(
            self.path / WEIGHTS, [json_line({"key": key, "entry": new[key]}, True) for key in new]
        )
        self._weights_kept.update(new)

    def weights(self) -> KeptWeights:
        """What `append_weights` has kept, by key; a damaged line is left out, with a note."""
        former = self.read_json("weights.json")
        found = KeptWeights(self.path / WEIGHTS, former if isinstance(former, dict) else None)
        for number in found.damaged:
            self._note_damage(WEIGHTS, number)
        return found

    def _append(self, path: Path, lines: Sequence[bytes]) -> None:
        """Add lines of JSON to a file; a last line that a crash cut short goes."""
        if not lines:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("a+b") as stream:
                _drop_cut_line(stream)
                stream.write(b"".join(lines))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise unwritable(path, error) from None

    def is_newer(self, name: str) -> bool:
        """Whether a file is there and was written after every row."""
        files = [self.path / one for one in (ROWS, FAILURES) if (self.path / one).is_file()]
        path = self.path / name
        return path.is_file() and all(
            one.stat().st_mtime_ns <= path.stat().st_mtime_ns for one in files
        )

    def write_text(self, name: str, text: str) -> bool:
        """Write a small file atomically, unless it is there; whether it was written."""
        path = self.path / name
        if path.is_file() and path.read_bytes() == text.encode():
            return False
        atomic_write(path, text)
        return True

    def write_json(self, name: str, data: object) -> None:
        """Write plain data as JSON, atomically."""
        text = json.dumps(with_digest(data), indent=2, ensure_ascii=False)
        self.write_text(name, f"{text}\n")

    def read_json(self, name: str) -> Any:
        """Read plain data back; None where it was never written.

        Raises:
            OutputError: the file is not JSON, or differs from what was written.
        """
        path = self.path / name
        try:
            data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except (ValueError, RecursionError):
            raise OutputError(f"{path} is not JSON; remove it, or the whole folder") from None
        return without_digest(data, path)

    def save_predictions(self, key: str, logits: NDArray[Any] | Mapping[str, NDArray[Any]]) -> None:
        """Keep the logits [rows, classes] of a trial, or once of a dense model, or named arrays."""
        path = self.path / "predictions" / f"{key}.safetensors"
        if key.startswith("dense-") and path.is_file():
            return
        arrays = logits if isinstance(logits, Mapping) else {"logits": logits}
        atomic_write(path, save({name: np.ascontiguousarray(a) for name, a in arrays.items()}))

    def load_predictions(self, key: str) -> NDArray[np.float32] | None:
        """The logits kept under a key; None where there are none."""
        return self.load_arrays(key).get("logits")

    def load_arrays(self, key: str) -> dict[str, NDArray[Any]]:
        """What was kept under a key, by name; empty where nothing was."""
        path = self.path / "predictions" / f"{key}.safetensors"
        return dict(load_file(str(path))) if path.is_file() else {}

    def save_references(self, references: object, rows: str, task: str) -> None:
        """Keep what the logits are compared with, once: an array, or no more than which rows and
        task, where the units of a metric are kept with the logits.

        Args:
            references: of the measured rows, as their task has them.
            rows: content hash of the measured rows.
            task: name of the task.
        """
        path = self.path / "predictions" / f"{REFERENCES}.safetensors"
        if not path.is_file():
            values = references if isinstance(references, np.ndarray) else np.empty(0)
            kept = {"references": np.ascontiguousarray(values)}
            atomic_write(path, save(kept, {"rows": rows, "task": task}))

    def references(self) -> References | None:
        """What `save_references` has kept; None where it has not."""
        path = self.path / "predictions" / f"{REFERENCES}.safetensors"
        if not path.is_file():
            return None
        with safe_open(str(path), "numpy") as file:
            about = file.metadata() or {}
            return References(
                file.get_tensor("references"), about.get("rows", ""), about.get("task", "")
            )


def _drop_cut_line(stream: BinaryIO) -> None:
    """Truncate a file behind its last line end; reads one byte where it ends in one."""
    end = stream.seek(0, os.SEEK_END)
    if end and stream.seek(end - 1) is not None and stream.read(1) != b"\n":
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)


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
