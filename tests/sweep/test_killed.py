"""A run that is killed while it writes goes on, and ends as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfcompress.recipes.schema import Recipe
from hfcompress.sweep.results import ROWS, RunDirectory
from hfcompress.sweep.run import run

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe]) -> Recipe:
    finetune = {"epochs": 3, "batch_size": 16, "learning_rate": 1e-2}
    return make_recipe(
        steps=[{"finetune": finetune}, {"quantize": {"backend": "torch"}}],
        grid={"quantize.per_channel": [True, False]},
        save_models=True,
    )


def killed(recipe: Recipe, output: Path, name: str, at: int, keep: float | None) -> bool:
    """Run in a forked process that gets SIGKILL at a call of ``os.NAME``; whether it came so far.

    Args:
        recipe: what is run.
        output: the run's folder.
        name: of a function of ``os``, or of its first argument a file number.
        at: which call.
        keep: share of the last line that ``os.fsync`` leaves of the file; None cuts nothing.
    """
    child = os.fork()
    if not child:
        plain, calls = getattr(os, name), []

        def dies(*arguments: Any, **named: Any) -> Any:
            calls.append(arguments)
            if len(calls) < at:
                return plain(*arguments, **named)
            if keep is not None:
                _cut(arguments[0], keep)
            os.kill(os.getpid(), signal.SIGKILL)
            return None

        setattr(os, name, dies)
        try:
            run(recipe, output, draw=False)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _cut(number: int, keep: float) -> None:
    content = os.pread(number, os.fstat(number).st_size, 0)
    begin = content.rfind(b"\n", 0, -1) + 1
    os.truncate(f"/proc/self/fd/{number}", begin + int((len(content) - begin) * keep))


def without_times(row: dict[str, Any]) -> str:
    steps = [{**step, "seconds": 0} for step in row["steps"]]
    return json.dumps({**row, "seconds": 0, "steps": steps}, sort_keys=True)


def temporary_files(*folders: Path) -> list[Path]:
    found = [path for folder in folders for path in folder.rglob("*")]
    return [path for path in found if path.suffix in (".tmp", ".old", ".partial")]


@pytest.mark.parametrize("seed", range(2))
def test_each_row_is_there_once_and_right_after_kills(
    recipe: Recipe, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    undisturbed = [without_times(row) for row in run(recipe, tmp_path / "whole", draw=False)]
    os.replace(tmp_path / "cache", tmp_path / "cache of the whole")
    output, kills = tmp_path / "run", 0
    for name, most in (("fsync", 20), ("replace", 12), ("fsync", 8)):
        keep = draw.random() if name == "fsync" and hasattr(os, "pread") else None
        kills += killed(recipe, output, name, draw.randint(1, most), keep)
    assert kills >= 2
    rows = run(recipe, output, draw=False)
    assert [without_times(row) for row in rows] == undisturbed
    assert len((output / ROWS).read_text().splitlines()) == len(rows)
    assert len(list((output / "models").iterdir())) == len(rows)
    assert not temporary_files(output, tmp_path / "cache")
    assert all(RunDirectory(output).load_predictions(row["hash"]) is not None for row in rows)


def test_training_goes_on_where_it_was_and_its_loss_is_that_of_the_whole(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = recipe.replace(grid=())
    whole = run(short, tmp_path / "whole", draw=False)
    monkeypatch.setenv("HFCOMPRESS_CACHE", str(tmp_path / "another"))
    steps = tmp_path / "another" / "steps"
    for at in range(5, 15):
        killed(short, tmp_path / "run", "replace", at, None)
        if list(steps.glob("*.partial/checkpoint-*/digests.json")):
            break
    else:
        pytest.fail("no kill came between a checkpoint and the end of the training")
    again = run(short, tmp_path / "run", draw=False)
    assert without_times(again[0]) == without_times(whole[0])
    assert again[0]["steps"][0]["training_loss"] > 0
