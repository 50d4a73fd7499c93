"""Results of expensive steps, kept by content hash so that nobody computes them twice."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel

from hfcompress.errors import OutputError, first_line
from hfcompress.models.loading import saved_class
from hfcompress.storage.caches import keep_below_limit, mark_used
from hfcompress.storage.temporary import remove_leftovers, written_beside
from hfcompress.utils import (
    Fields,
    Progress,
    cache_folder,
    damaged_files,
    locked,
    unwritable,
    write_digests,
)


class StepCache:
    """A folder of models, one for each prefix of steps that was carried out.

    A cache that cannot be read or written (full, read-only, not a folder) costs what it would have
    kept, with a note, and never the trial.

    Args:
        root: where it lies; ``$HFCOMPRESS_CACHE`` or ``~/.cache/hfcompress`` by default.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_folder()
        self._noted = False
        remove_leftovers(self.root / "steps")

    def folder(self, key: str) -> Path:
        """Where the model of a key lies, or would lie."""
        return self.root / "steps" / key

    def partial(self, key: str, progress: Progress) -> Path | None:
        """A folder in which unfinished training keeps its checkpoints, removed when the step is
        done; None where it cannot be made."""
        folder = self._partial(key)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._note(folder, error, progress)
            return None
        return folder

    def _partial(self, key: str) -> Path:
        return self.root / "steps" / f"{key}.partial"

    def _note(self, path: Path, error: Exception, progress: Progress) -> None:
        """Say once that the cache is of no use."""
        if not self._noted:
            problem = error if isinstance(error, OutputError) else unwritable(path, error)
            progress.note(f"the cache is not used: {first_line(problem)}")
        self._noted = True

    @contextmanager
    def locked(self, key: str, progress: Progress) -> Iterator[None]:
        """Keep other processes from the training of a key while the body runs; waits for them."""
        path = self.root / "locks" / f"{key}.lock"
        with ExitStack() as stack:
            # An entry of a cache that is only read needs no lock.
            if not self.folder(key).is_dir() or os.access(self.root, os.W_OK):
                try:
                    stack.enter_context(
                        locked(path, None, lambda held: progress.note(f"{held} for the same step"))
                    )
                except OutputError as error:
                    self._note(path, error, progress)
            yield

    def get(self, key: str, like: PreTrainedModel, progress: Progress) -> PreTrainedModel | None:
        """The kept model, as the class that it was saved from (often that of ``like``); None where
        there is none.

        A damaged entry is set aside: its files differ from the digests that were kept with them
        or, where an older version kept none, cannot be read.

        Args:
            key: of the step.
            like: a model that is often of the same class.
            progress: receives a note about a damaged entry.
        """
        folder = self.folder(key)
        if not folder.is_dir():
            return None
        damaged: list[str] | None = []
        try:
            damaged = damaged_files(folder)
            if not damaged:
                mark_used(folder)
                self.done(key)
                shutil.rmtree(self._partial(key), ignore_errors=True)  # its maker may have died
                return _load(folder, like)
            problem = f"{', '.join(damaged)} differ from what was written"
        except Exception as error:  # what a cut file raises depends on where it is cut
            if damaged is not None and isinstance(error, OSError):
                self._note(folder, error, progress)
                return None
            if damaged is not None:
                raise
            problem = first_line(error)
        aside = folder.with_name(f"{key}.damaged")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)
        except OSError:  # the cache is only read
            aside = folder
        progress.note(f"a kept model is damaged ({problem}) and made again; it is now {aside}")
        return None

    def done(self, key: str) -> Fields:
        """The report of the step whose model is kept."""
        path = self.folder(key) / "done.json"
        kept: Fields = json.loads(path.read_text(encoding="utf-8"))
        return kept

    def put(self, key: str, model: PreTrainedModel, done: Fields, progress: Progress) -> None:
        """Keep a model, what the step did and the digests of both: written under a temporary name,
        then renamed. An entry that another process has made meanwhile stays."""
        folder = self.folder(key)
        try:
            with written_beside(folder) as temporary:
                model.save_pretrained(temporary)
                (temporary / "done.json").write_text(json.dumps(done), encoding="utf-8")
                write_digests(temporary)
                if not folder.exists():
                    os.rename(temporary, folder)
            keep_below_limit("step", folder)
        except (OSError, SafetensorError, OutputError) as error:
            if not folder.is_dir():  # another process may have been faster
                self._note(folder, error, progress)
        shutil.rmtree(self._partial(key), ignore_errors=True)


def _load(folder: Path, like: PreTrainedModel) -> PreTrainedModel:
    model: PreTrainedModel = saved_class(folder, like).from_pretrained(folder, dtype=like.dtype)
    model.eval()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    return model
