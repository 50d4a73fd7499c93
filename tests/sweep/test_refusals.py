"""What a sweep refuses, before anything is trained or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfcompress.errors import (
    BadInputError,
    CalibrationError,
    ConfigError,
    DataError,
    ModelError,
    TargetError,
)
from hfcompress.recipes.schema import Recipe
from hfcompress.sweep import trial as trial_module
from hfcompress.sweep.run import run
from hfcompress.sweep.sensitivity import run_sensitivity
from hfcompress.utils import Progress

EVIL = """
from pathlib import Path
Path(__file__).with_name("RAN").touch()
"""


class Heard(Progress):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.counts: list[tuple[int, int]] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def sweep(self, done: int, total: int) -> None:
        self.counts.append((done, total))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"data": {"path": "no/such/file.tsv"}}, BadInputError),
        ({"model": "no/such/folder/at/all"}, BadInputError),
        (
            {"steps": [{"prune": {"sparsity": 0.5, "targets": ["nothing*"]}}], "grid": {}},
            TargetError,
        ),
        ({"measure": {"metric": "no_such_metric"}}, BadInputError),
    ],
)
def test_bad_input_writes_nothing(
    changes: dict[str, Any],
    error: type[Exception],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    with pytest.raises(error) as caught:
        run(make_recipe(**changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_untrained_head_is_refused(
    make_recipe: Callable[..., Recipe], write_data: Callable[..., Path]
) -> None:
    path = write_data("three.tsv")
    path.write_text("sentence\tlabel\n" + "\n".join(f"film\t{index % 3}" for index in range(9)))
    steps = [{"prune": {"sparsity": 0.5}}]
    with pytest.raises(ModelError, match="no trained classification head"):
        run(make_recipe(data=str(path), steps=steps, grid={}))


def test_training_needs_rows(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    path = tmp_path / "two.csv"
    path.write_text("text,label\na,0\n")
    with pytest.raises(DataError):
        run(make_recipe(data=str(path)))


@pytest.mark.parametrize("measure", [{"metric": "{}"}, {"also": ["{}"]}])
@pytest.mark.parametrize("spelling", ["./evil", "evil", "evil/evil.py", "{}/evil"])
def test_a_recipe_runs_no_metric_script(
    measure: dict[str, Any], spelling: str, make_recipe: Callable[..., Recipe], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    name = spelling.format(tmp_path)
    filled = {key: name if isinstance(value, str) else [name] for key, value in measure.items()}
    with pytest.raises(ConfigError, match="is not built in"):
        run(make_recipe(measure=filled))
    with pytest.raises(ConfigError, match="is not built in"):  # the caller's word is not enough
        run(make_recipe(measure=filled), trust_remote_code=True)
    with pytest.raises(ConfigError, match=r"measure\.trust_remote_code: true runs code"):
        run(make_recipe(measure={**filled, "trust_remote_code": True}))  # nor is the recipe's
    assert not list(tmp_path.rglob("RAN"))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"path": "org/model", "trust_remote_code": True}},
        {"steps": [{"distill": {"model": {"path": "org/model", "trust_remote_code": True}}}],
         "grid": {}},
    ],
)  # fmt: skip
def test_a_recipe_that_asks_to_run_code_needs_the_callers_word(
    changes: dict[str, Any], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe(**changes)
    with pytest.raises(ConfigError, match="allow it: --trust-remote-code"):
        run(recipe, tmp_path / "out")
    with pytest.raises(ConfigError, match="allow it: --trust-remote-code"):
        run_sensitivity(recipe, tmp_path / "out")


@pytest.mark.parametrize(
    "step",
    [
        {"prune": {"method": "wanda", "sparsity": 0.5, "calibration_rows": 31}},
        {"quantize": {"backend": "onnxruntime", "mode": "static", "calibration_rows": 31}},
        {"distill": {"student": {"layers": 1, "init": "importance", "calibration_rows": 31}}},
        {"progressive": {"prune": {"method": "wanda", "sparsity": 0.5, "calibration_rows": 28},
                         "sparsity": 0.5}},
    ],
)  # fmt: skip
def test_calibration_rows_are_checked_before_training(
    step: dict[str, Any], make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a step ran")

    monkeypatch.setattr(trial_module, "run_step", never)
    (name,) = step
    with pytest.raises(
        CalibrationError, match=rf"^{name}\..*calibration_rows is \d+ and the train"
    ):
        run(make_recipe(steps=[{"finetune": {"max_steps": 1}}, step], grid={}))


@pytest.mark.usefixtures("shared_exports")
def test_default_calibration_takes_the_rows_that_there_are(
    make_recipe: Callable[..., Recipe],
) -> None:
    heard = Heard()
    steps = [{"quantize": {"backend": "onnxruntime", "mode": "static"}}]
    assert len(run(make_recipe(steps=steps, grid={}), progress=heard)) == 1
    assert "quantize calibrates on all 30 training rows" in heard.notes
