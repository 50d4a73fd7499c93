"""The folder of kept steps: what killed processes leave goes, what is written stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

from hfcompress.sweep.cache import StepCache


def test_leftovers_of_killed_processes_go_a_day_later(tmp_path: Path) -> None:
    steps = tmp_path / "steps"
    old, new, kept = steps / ".aa.1.tmp", steps / ".bb.2.tmp", steps / "cc"
    for folder in (old, new, kept):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
    before = time.time() - 2 * 24 * 3600
    for folder in (old, kept):
        os.utime(folder, (before, before))
    StepCache(tmp_path)
    assert sorted(path.name for path in steps.iterdir()) == [".bb.2.tmp", "cc"]


def test_a_cache_that_is_not_there_yet_is_no_error(tmp_path: Path) -> None:
    assert StepCache(tmp_path / "none").folder("key") == tmp_path / "none" / "steps" / "key"
