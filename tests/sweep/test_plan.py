"""The plan of a run: what is to do, what is kept, how long; nothing is trained or written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hfcompress.cli.commands import main
from hfcompress.errors import OutputError
from hfcompress.recipes.schema import Recipe
from hfcompress.recipes.yaml import dump_yaml
from hfcompress.sweep.plan import PlannedStep, plan
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.run import run


def test_the_plan_is_what_the_run_then_does(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe, output = make_recipe(), tmp_path / "run"
    before = plan(recipe, output)
    assert (before.trials, before.finished, len(before.pending)) == (4, 0, 4)
    assert before.steps == (
        PlannedStep("finetune", trials=4, models=1, kept=0, seconds=None),
        PlannedStep("prune", trials=4, models=4, kept=0, seconds=0.0),
    )
    assert before.seconds is None
    assert "not known" in before.sentence
    assert not output.exists()
    assert not (tmp_path / "cache").exists()  # nothing was trained

    run(recipe, output, draw=False)
    after = plan(recipe, output)
    assert (after.finished, after.pending, after.steps) == (4, (), ())
    assert after.sentence == "0 of 4 trials to run; the run is finished."

    more = make_recipe(grid={"prune.sparsity": [0, 0.5, 0.7], "prune.scope": ["layer", "global"]})
    grown = plan(more, output)
    assert [settings["prune.sparsity"] for settings in grown.pending] == [0.7, 0.7]
    assert grown.steps[0] == PlannedStep("finetune", trials=2, models=1, kept=1, seconds=0.0)
    rows = sorted(row["seconds"] for row in run(recipe, output, draw=False).rows)
    assert grown.seconds == pytest.approx(2 * rows[1])
    assert json.loads(json.dumps(grown.to_dict()))["measured"] == 4
    with pytest.raises(OutputError, match="results of another recipe"):
        plan(make_recipe(seed=3), output)


def test_a_training_of_each_trial_is_counted_once(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    pruned = {"prune.sparsity": [0.5]}
    grid = {"finetune.max_steps": [1, 2], **pruned}
    run(make_recipe(grid=grid), tmp_path / "run", draw=False)
    store = RunDirectory(tmp_path / "run")
    rows = store.rows()
    store.rows_file.unlink()
    for row in rows:
        row["seconds"], row["steps"][0]["seconds"] = 7.0, 5.0
        store.append(row)
    found = plan(make_recipe(grid={"finetune.max_steps": [1, 2, 3, 4], **pruned}), tmp_path / "run")
    assert found.steps[0].seconds == 2 * 5.0
    assert found.seconds == 2 * 7.0


def test_the_command_prints_the_plan_and_writes_nothing(
    make_recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_yaml(make_recipe().to_dict()))
    assert main(["run", str(path), "--output", str(tmp_path / "run"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "finetune" in shown
    assert "4 of 4 trials to run" in " ".join(shown.split())
    assert "prune.sparsity=0.5" in shown
    assert main(["run", str(path), "--output", str(tmp_path / "run"), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trials"] == 4
    assert not (tmp_path / "run").exists()
