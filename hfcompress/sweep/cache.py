"""Results of expensive steps, kept by content hash so that nobody computes them twice."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from pathlib import Path

from transformers import PreTrainedModel

from hfcompress.models.loading import saved_class
from hfcompress.utils import Fields, cache_folder

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

    def get(self, key: str, like: PreTrainedModel) -> PreTrainedModel | None:
        """The kept model, as the class that it was saved from (often that of ``like``); None where
        there is none."""
        folder = self.folder(key)
        if not folder.is_dir():
            return None
        model: PreTrainedModel = saved_class(folder, like).from_pretrained(folder, dtype=like.dtype)
        model.eval()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        return model

    def done(self, key: str) -> Fields:
        """The report of the step whose model is kept."""
        path = self.folder(key) / "done.json"
        kept: Fields = json.loads(path.read_text(encoding="utf-8"))
        return kept

    def put(self, key: str, model: PreTrainedModel, done: Fields) -> None:
        """Keep a model and what the step did: written under a temporary name, then renamed."""
        folder = self.folder(key)
        temporary = folder.with_name(f".{key}.{uuid.uuid4().hex}.tmp")
        try:
            model.save_pretrained(temporary)
            (temporary / "done.json").write_text(json.dumps(done), encoding="utf-8")
            if not folder.exists():
                os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(self.partial(key), ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left, a day later: whoever
    still writes is done by then."""
    for left in folder.glob(".*.tmp"):
        try:
            if time.time() - left.stat().st_mtime > _DAY:
                shutil.rmtree(left)
        except OSError:  # another process was faster, or it is not ours to remove
            continue
