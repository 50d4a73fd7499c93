"""Results of expensive steps, kept by content hash so that nobody computes them twice."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel

from hfcompress.caches import keep_below_limit, mark_used
from hfcompress.errors import first_line
from hfcompress.models.loading import saved_class
from hfcompress.utils import (
    Fields,
    Progress,
    cache_folder,
    damaged_files,
    locked,
    write_digests,
)

_DAY = 24 * 3600


class StepCache:
    """A folder of models, one for each prefix of steps that was carried out.

    Args:
        root: where it lies; ``$HFCOMPRESS_CACHE`` or ``~/.cache/hfcompress`` by default.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_folder()
        _sweep(self.root / "steps")

    def folder(self, key: str) -> Path:
        """Where the model of a key lies, or would lie."""
        return self.root / "steps" / key

    def partial(self, key: str) -> Path:
        """Where unfinished training keeps its checkpoints; removed when the step is done."""
        return self.root / "steps" / f"{key}.partial"

    @contextmanager
    def locked(self, key: str, progress: Progress) -> Iterator[None]:
        """Keep other processes from the training of a key while the body runs; waits for them."""
        if self.folder(key).is_dir() and not os.access(self.root, os.W_OK):
            yield  # kept by somebody else, in a folder that is only read
            return
        path = self.root / "locks" / f"{key}.lock"
        with locked(path, None, lambda holder: progress.note(f"{holder} for the same training")):
            yield

    def get(
        self, key: str, like: PreTrainedModel, progress: Progress | None = None
    ) -> PreTrainedModel | None:
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
        damaged = damaged_files(folder)
        try:
            if not damaged:
                mark_used(folder)
                self.done(key)
                return _load(folder, like)
            problem = f"{', '.join(damaged)} differ from what was written"
        except Exception as error:  # what a cut file raises depends on where it is cut
            if damaged is not None:
                raise
            problem = first_line(error)
        aside = folder.with_name(f"{key}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
        if progress is not None:
            progress.note(f"a kept model is damaged ({problem}), moved to {aside}, and made again")
        return None

    def done(self, key: str) -> Fields:
        """The report of the step whose model is kept."""
        path = self.folder(key) / "done.json"
        kept: Fields = json.loads(path.read_text(encoding="utf-8"))
        return kept

    def put(self, key: str, model: PreTrainedModel, done: Fields) -> None:
        """Keep a model, what the step did and the digests of both: written under a temporary name,
        then renamed."""
        folder = self.folder(key)
        temporary = folder.with_name(f".{key}.{uuid.uuid4().hex}.tmp")
        try:
            model.save_pretrained(temporary)
            (temporary / "done.json").write_text(json.dumps(done), encoding="utf-8")
            write_digests(temporary)
            if not folder.exists():
                os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(self.partial(key), ignore_errors=True)
        keep_below_limit("step", folder)


def _load(folder: Path, like: PreTrainedModel) -> PreTrainedModel:
    model: PreTrainedModel = saved_class(folder, like).from_pretrained(folder, dtype=like.dtype)
    model.eval()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    return model


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left, a day later: whoever
    still writes is done by then."""
    for left in folder.glob(".*.tmp"):
        try:
            if time.time() - left.stat().st_mtime > _DAY:
                shutil.rmtree(left)
        except OSError:  # another process was faster, or it is not ours to remove
            continue
