"""The command line as people meet it: a process, its output and its exit code."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertForTokenClassification

from hfcompress import __version__
from hfcompress.cli import main as entry_point
from hfcompress.cli.commands import main
from hfcompress.cli.display import Terminal, loading
from hfcompress.errors import ConfigError
from hfcompress.pruning.prune import prune
from hfcompress.recipes.grid import Trial
from hfcompress.recipes.library import shipped_recipes
from hfcompress.recipes.yaml import dump_yaml
from hfcompress.sweep.trial import Runner
from tests.forked import run_forked
from tests.fresh_process import run_fresh
from tests.tiny_models import tiny_bert


@pytest.fixture
def recipe_file(tmp_path: Path, model_folder: Path, write_data: Callable[..., Path]) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(
        dump_yaml(
            {
                "model": str(model_folder),
                "data": str(write_data(rows=40)),
                "steps": [{"prune": {}}],
                "grid": {"prune.sparsity": [0, 0.5]},
            }
        )
    )
    return path


def test_run_shows_a_table_and_names_the_sweet_spot(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe_file), "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "accuracy" in shown
    assert "50" in shown
    assert "weet spot" in shown or "within noise" in shown
    assert (tmp_path / "out" / "report.html").is_file()
    assert main(["run", str(recipe_file), "--output", str(tmp_path / "out"), "--quiet"]) == 0
    assert main(["report", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "As written" in page
    assert (
        (tmp_path / "out" / "recipe.written.yaml").read_text().startswith(recipe_file.read_text())
    )
    assert "accuracy" in capsys.readouterr().out


IN_A_TERMINAL = """
import importlib.abc, os, pty, sys

class Marks(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        os.write(2, f"<import {name}>".encode())

child, terminal = pty.fork()
if not child:
    os.environ.update(TERM="xterm", COLUMNS="100")
    sys.meta_path.insert(0, Marks())
    from hfcompress.cli import main
    os._exit(main(sys.argv[1:]))
shown = b""
try:
    while more := os.read(terminal, 65536):
        shown += more
except OSError:  # how Linux says that the other end is closed
    pass
assert os.waitpid(child, 0)[1] == 0, shown
sys.stdout.buffer.write(shown)
"""
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"  # a bar begins, and ends


def test_a_terminal_shows_a_bar_at_every_moment(recipe_file: Path, tmp_path: Path) -> None:
    shown = run_fresh(IN_A_TERMINAL, "run", str(recipe_file), "--output", str(tmp_path / "out"))
    texts = ["loading", "<import transformers>", "<import hfcompress.sweep.run>", "trials"]
    places = [shown.index(text) for text in texts]
    assert places == sorted(places)
    before, *bars = shown.split(HIDE_CURSOR)
    bare = before + "".join(part.partition(SHOW_CURSOR)[2] for part in bars)
    imported = {name.split(".")[0] for name in re.findall("<import (.*?)>", bare)}
    assert not imported & {"torch", "transformers", "datasets", "scipy", "pandas", "matplotlib"}
    assert "sparsity" in shown.rpartition(SHOW_CURSOR)[2]  # the table stands below the bars


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (True, True), (False, False)])
def test_loading_is_shown_in_a_terminal_unless_quiet(terminal: bool, quiet: bool) -> None:
    file = io.StringIO()
    with loading(Terminal(file=file, force_terminal=terminal), quiet):
        assert ("loading" in file.getvalue()) is (terminal and not quiet)
    assert bool(file.getvalue()) is (terminal and not quiet)


@pytest.mark.parametrize("command", ["run", "sensitivity"])
@pytest.mark.parametrize("broken", ["every", "some"])
def test_failed_trials_are_named_and_the_others_kept(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], command: str, broken: str,
) -> None:  # fmt: skip
    def fails(model: Any, config: Any, *rest: Any) -> Any:
        if broken == "every" or config.sparsity == 0.5:
            raise RuntimeError("no room [in memory]")
        return prune(model, config, *rest)

    monkeypatch.setattr("hfcompress.steps.prune.prune", fails)
    assert main([command, str(recipe_file), "--output", str(tmp_path / "out")]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "prune.sparsity=0.5: no room [in memory]" in shown
    assert ("written to" in shown) is (broken == "some")


def test_validate_lists_trials(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(recipe_file)]) == 0
    assert "valid recipe with 2 trials" in capsys.readouterr().out


def test_inspect(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model_folder)]) == 0
    shown = capsys.readouterr().out
    assert "parameters" in shown
    assert "BertForSequenceClassification" in shown


def test_inspect_takes_the_task_that_a_checkpoint_was_saved_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BertForTokenClassification(tiny_bert(num_labels=3).config).save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    assert "BertForTokenClassification" in capsys.readouterr().out


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in shipped_recipes())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no-such-recipe"], "there is no recipe file 'no-such-recipe'"),
        (["run", "quikstart"], "did you mean 'quickstart'?"),
        (["validate", "RECIPE", "--set", "prune.sparsty=1"], "did you mean 'sparsity'?"),
        (["run", "RECIPE", "--set", "grid.prune.sparsity=[2]"], "should be less than 1"),
        (["run", "RECIPE", "--set", "model=./none"], "there is no file or folder './none'"),
        (["run", "RECIPE", "--set", "data.path=none.tsv"], "there is no file or folder"),
        (["run", "RECIPE", "--set", "model=org/none"], "the hub cannot be reached"),
        (["run", "RECIPE", "--set", "prune.targets=[nothing]"], "'nothing' matches no module"),
        (["run", "RECIPE", "--set", "measure.metric=acuracy"], "acuracy"),
        (["report", "/no/such/folder"], "contains no results.jsonl"),
        (["inspect", "./none"], "there is no file or folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(recipe_file) if item == "RECIPE" else item for item in arguments]
    assert main(given) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.startswith("error:")
    assert len(shown.err.strip().splitlines()) == 1
    assert "Traceback" not in shown.out + shown.err
    assert not (tmp_path / "runs").exists()


def test_an_unexpected_failure_is_exit_code_1(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("hfcompress.recipes.schema.load_recipe", broken)
    assert main(["validate", str(recipe_file)]) == 1
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        main(["validate", str(recipe_file), "--debug"])


@pytest.mark.parametrize(
    "command", ["", "run", "validate", "inspect", "bench", "report", "recipes"]
)
def test_help_fits_a_screen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 36
    assert max(map(len, lines)) <= 100


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert __version__ in capsys.readouterr().out


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hfcompress.cli", "recipes"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "quickstart" in done.stdout


def test_the_entry_point_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        entry_point(["--version"])
    assert ended.value.code == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_stopped_run_says_how_to_go_on(
    recipe_file: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    def run() -> int:
        perform = Runner.run

        def killed(runner: Runner, which: Trial) -> Any:
            if which.index == 1:
                os.kill(os.getpid(), number)
            return perform(runner, which)

        # A shell's background job ignores some signals.
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, usual)
        setattr(Runner, "run", killed)  # noqa: B010
        sys.argv = ["hfcompress", "run", str(recipe_file), "--output", str(tmp_path / "out")]
        return entry_point()

    done = run_forked(run)
    assert done.returncode == code, done.stderr
    assert done.stderr.strip().endswith("stopped; the same command goes on where it was")
    assert "Traceback" not in done.stderr
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 1


def test_failed_trials_are_tried_again_with_a_flag(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fails(model: Any, config: Any, *rest: Any) -> Any:
        if config.sparsity == 0.5:
            raise KeyError("[/x]")
        return prune(model, config, *rest)

    command = ["run", str(recipe_file), "--output", str(tmp_path / "out")]
    with monkeypatch.context() as patched:
        patched.setattr("hfcompress.steps.prune.prune", fails)
        assert main(command) == 1
    assert "KeyError: '[/x]'" in capsys.readouterr().out
    assert main(command) == 1
    shown = capsys.readouterr().out
    assert "not tried again" in shown
    assert "--retry-failed runs the failed trials again" in shown
    assert main([*command, "--retry-failed"]) == 0
    assert "failed:" not in capsys.readouterr().out


def test_names_are_shown_as_they_are(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "[/x] :bug: [bold]"
    assert main(["run", str(recipe_file), "--output", str(output)]) == 0
    assert "[/x] :bug: [bold]: report.html" in capsys.readouterr().out.replace("\n", "")
    assert main(["run", str(tmp_path / "[/y]\x1b[2J")]) == 2
    shown = capsys.readouterr().err
    assert "[/y]" in shown
    assert "\x1b" not in shown


def test_an_error_is_shown_shortened(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def long(*_: object, **__: object) -> None:
        raise ConfigError("x" * 10_000_000)

    monkeypatch.setattr("hfcompress.recipes.schema.load_recipe", long)
    assert main(["validate", str(recipe_file)]) == 2
    assert len(capsys.readouterr().err) < 2500
