"""The command line: ``hfcompress run | compress | bench | inspect | predict | report`` and more.

The only file that prints. Exit codes: 0 done, 2 bad input, 1 a failure on the way, 130 stopped by
Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from hfcompress.cli.arguments import make_parser
from hfcompress.cli.output import (
    note_on,
    plan_table,
    prediction_lines,
    prediction_rows,
    print_json,
    settings_lines,
    show_failures,
    show_rows,
    show_written,
)
from hfcompress.cli.runs import compare_command, report_command
from hfcompress.cli.verbs import VERBS, run_overrides
from hfcompress.errors import HfcompressError
from hfcompress.utils import quiet_libraries

if TYPE_CHECKING:  # rich takes tenths of a second to import, and torch takes seconds
    from rich.console import Console

    from hfcompress.recipes.schema import Recipe

# These commands keep what is finished.
_GO_ON = {"run", "sensitivity", "compress"}
_LONGEST = 2000  # characters of an error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parsed(arguments)

    from rich.text import Text

    from hfcompress.cli.display import Terminal

    errors = Terminal(stderr=True, soft_wrap=True)
    mark = Text("error:", style="bold red")
    try:
        _import_libraries(options)
        return _COMMANDS[options.command](options, _console(options))
    except HfcompressError as error:
        errors.print(mark, _one_line(error))
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        again = "; the same command goes on where it was" * (options.command in _GO_ON)
        errors.print(f"stopped{again}")
        return interrupt.args[0] if interrupt.args else 128 + signal.SIGINT
    except BrokenPipeError:
        return 1
    except Exception as error:  # no traceback for the user; --debug shows it
        if options.debug:
            raise
        errors.print(mark, f"{type(error).__name__}: {_one_line(error)} (--debug shows where)")
        return 1


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line. A verb's come from its config, which takes long to import."""
    command = next((word for word in arguments if word[:1] != "-"), None)
    if command not in VERBS:
        return make_parser(command).parse_args(arguments)
    from hfcompress.cli.display import Terminal, loading

    with loading(Terminal(stderr=True), "--quiet" in arguments):
        parser = make_parser(command)
    return parser.parse_args(arguments)  # prints errors and help


def _import_libraries(options: argparse.Namespace) -> None:
    """Import what a command needs before it shows its own progress."""
    if (module := _MODULES.get(options.command)) is None:
        return
    from hfcompress.cli.display import Terminal, loading

    with loading(Terminal(stderr=True), options.quiet):
        quiet_libraries()
        importlib.import_module(module)


def _console(options: argparse.Namespace) -> Console:
    """Standard output, or standard error where rows go to standard output as JSON; a file or pipe
    has no width of its own and gets a wide one."""
    from hfcompress.cli.display import Terminal

    to_stderr = getattr(options, "json", False)
    plain = Terminal(stderr=to_stderr)
    if plain.is_terminal:
        return plain
    return Terminal(stderr=to_stderr, width=max(plain.width, 140))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 5]} ..."


# --- commands ----------------------------------------------------------------------------------


def _run(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.cli.display import Display
    from hfcompress.recipes.library import find_recipe
    from hfcompress.recipes.schema import load_recipe
    from hfcompress.sweep.run import run

    recipe = load_recipe(
        find_recipe(options.recipe), run_overrides(options), note_on(console, options)
    )
    output = Path(options.output or Path("runs") / recipe.name)
    if options.dry_run:
        return _show_plan(recipe, output, options, console)
    with Display(console, options.quiet) as display:
        result = run(
            recipe, output, display, workers=options.workers, engine=options.engine,
            **_resume_options(options),
        )  # fmt: skip
    show_rows(result.rows, console, options)
    if result.rows:
        show_written(output, console, options)
    return show_failures(result, console)


def _verb(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.cli.display import Display
    from hfcompress.cli.verbs import verb_recipe
    from hfcompress.recipes.yaml import dump_yaml
    from hfcompress.sweep.run import run

    recipe = verb_recipe(options.command, vars(options))
    if options.dry_run:
        if options.json:
            print_json([recipe.to_dict()])
        else:
            console.print(dump_yaml(recipe.to_dict()).rstrip())
        return 0
    output = Path(options.output or Path("runs") / recipe.name)
    with Display(console, options.quiet) as display:
        result = run(recipe, output, display)
    show_rows(result.rows, console, options)
    for folder in sorted((output / "models").glob("[0-9]*")):
        console.print(f"the model: {folder}")
    return show_failures(result, console)


def _sparsify(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.checkpoint.save import save_compressed
    from hfcompress.cli.display import Display
    from hfcompress.models.loading import ModelConfig, load_model
    from hfcompress.tasks.registry import task_of_checkpoint

    with Display(console, options.quiet) as display:
        display.stage("loading")
        loaded = load_model(ModelConfig(path=options.model), task_of_checkpoint(options.model))
        display.stage("packing")
        saved = save_compressed(loaded.model, options.output, sparse=True)
        loaded.processor.save_pretrained(options.output)
    console.print(
        f"{saved.packed} weights packed: {saved.dense_bytes / 1e6:.2f} MB in "
        f"{saved.bytes / 1e6:.2f} MB; written to {options.output}"
    )
    return 0


def _push(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.models.upload import push

    console.print(push(options.directory, options.name, options.private))
    return 0


def _show_plan(recipe: Recipe, output: Path, options: argparse.Namespace, console: Console) -> int:
    from hfcompress.cli.display import Display
    from hfcompress.sweep.plan import plan

    with Display(console, options.quiet) as display:
        found = plan(recipe, output, display, trust_remote_code=options.trust_remote_code)
    if options.json:
        print_json([found.to_dict()])
    else:
        for line in settings_lines(found):
            console.print(line)
        if found.steps:
            console.print(plan_table(found))
    console.print(found.sentence)
    return 0


class _ResumeOptions(TypedDict):
    """Options of `run` that the command line has under the same names."""

    trust_remote_code: bool
    wait: bool
    retry_failed: bool
    fail_fast: bool


def _resume_options(options: argparse.Namespace) -> _ResumeOptions:
    return {
        "trust_remote_code": options.trust_remote_code,
        "wait": options.wait,
        "retry_failed": options.retry_failed,
        "fail_fast": options.fail_fast,
    }


def _sensitivity(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.cli.display import Display
    from hfcompress.recipes.library import find_recipe
    from hfcompress.recipes.schema import load_recipe
    from hfcompress.sweep.sensitivity import layers_recipe, run_sensitivity

    recipe = load_recipe(
        find_recipe(options.recipe), run_overrides(options), note_on(console, options)
    )
    output = Path(options.output or Path("runs") / f"{recipe.name}-layers")
    if options.dry_run:
        return _show_plan(layers_recipe(recipe), output, options, console)
    with Display(console, options.quiet) as display:
        result = run_sensitivity(recipe, output, display, **_resume_options(options))
    worst = sorted(result.rows, key=lambda row: -row["drop"])[:5]
    if options.json:
        print_json(result.rows)
    elif worst:
        console.print("the layers that lose most:")
        for row in worst:
            layer, sparsity = row["settings"]["prune.targets"][0], row["requested_sparsity"]
            console.print(f"  {row['drop']:+.2%} at {sparsity:.0%}  {layer}")
    if worst:
        show_written(output, console, options)
    return show_failures(result, console)


def _validate(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.recipes.library import find_recipe
    from hfcompress.recipes.schema import expand, load_recipe

    path = find_recipe(options.recipe)
    recipe = load_recipe(path, options.set, note_on(console, options))
    trials = expand(recipe)
    console.print(f"{path} is a valid recipe with {len(trials)} trial{'s' * (len(trials) != 1)}:")
    if options.json:
        print_json({"trial": trial.index, "settings": trial.settings} for trial in trials)
        return 0
    for trial in trials:
        steps = ", ".join(step.name for step in trial.steps) or "measure only"
        varies = ", ".join(f"{field}={value}" for field, value in trial.settings.items())
        console.print(f"  {trial.index:3d}  {steps}  {varies}")
    return 0


def _compress(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.cli.search import compress_command

    return compress_command(options, console)


def _certify(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.cli.search import certify_command

    return certify_command(options, console)


def _check(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.cli.inspect import check_command

    return check_command(options, console)


def _feasibility(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.cli.inspect import feasibility_rows

    rows = feasibility_rows(options, console)
    if options.json:
        print_json(rows)
    return 0


def _inspect(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.cli.inspect import inspect_command

    return inspect_command(options, console)


def _predict(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.cli.display import Display

    with Display(console, options.quiet) as display:
        display.stage("predicting")
        rows = prediction_rows(options.directory, options.examples)
    if options.json:
        print_json(rows)
        return 0
    for line in prediction_lines(rows):
        console.print(line)
    return 0


def _bench(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.benchmarking.config import BenchConfig
    from hfcompress.benchmarking.run import bench
    from hfcompress.cli.display import Display
    from hfcompress.recipes.yaml import config_of_options
    from hfcompress.report.bench import bench_table, environment_line

    given = {name: getattr(options, name) for name in BenchConfig.model_fields}
    config = config_of_options(BenchConfig, given)
    with Display(console, options.quiet) as display:
        result = bench(options.models, config, options.output, display)
    if options.json:
        print_json(result.rows)
    else:
        console.print(environment_line(result.environment))
        console.print(bench_table(result.rows))
    if not options.quiet:
        console.print(f"written to {options.output}: bench.png, bench.json, bench.csv")
    return 0


def _cache(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.cli.cache import cache_command

    return cache_command(options, console)


def _recipes(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.recipes.library import headline, shipped_recipes

    found = {name: headline(path) for name, path in shipped_recipes().items()}
    if options.json:
        print_json({"name": name, "shows": text} for name, text in found.items())
        return 0
    for name, text in found.items():
        console.print(f"{name:28s} {text}")
    return 0


def _completion(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.cli.completion import completion_script

    print(completion_script(options.shell), end="")
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace, Console], int]] = {
    "run": _run,
    "sensitivity": _sensitivity,
    "validate": _validate,
    "compress": _compress,
    "inspect": _inspect,
    "bench": _bench,
    "feasibility": _feasibility,
    "report": report_command,
    "compare": compare_command,
    "certify": _certify,
    "check": _check,
    "predict": _predict,
    "cache": _cache,
    "recipes": _recipes,
    "completion": _completion,
    "sparsify": _sparsify,
    "push": _push,
    **dict.fromkeys(VERBS, _verb),
}

# What a command imports first; the others need neither torch nor transformers.
_MODULES = {
    "run": "hfcompress.sweep.run",
    "sensitivity": "hfcompress.sweep.sensitivity",
    "validate": "hfcompress.recipes.schema",
    "compress": "hfcompress.cli.search",
    "inspect": "hfcompress.cli.inspect",
    "bench": "hfcompress.benchmarking.run",
    "feasibility": "hfcompress.cli.inspect",
    "report": "hfcompress.sweep.run",
    "compare": "hfcompress.sweep.comparison",
    "certify": "hfcompress.cli.search",
    "check": "hfcompress.cli.inspect",
    "predict": "hfcompress.quantization.load",
    "sparsify": "hfcompress.checkpoint.save",
    "push": "hfcompress.models.upload",
    **dict.fromkeys(VERBS, "hfcompress.sweep.run"),
}
