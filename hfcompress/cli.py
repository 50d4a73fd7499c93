"""The command line: ``hfcompress run | compress | bench | inspect | predict | report`` and more.

The only file that prints. Exit codes: 0 done, 2 bad input, 1 a failure on the way.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from hfcompress import __version__
from hfcompress.errors import HfcompressError
from hfcompress.quiet import quiet_libraries
from hfcompress.recipe.progress import Progress

_EPILOG = (
    "Documentation and examples: README.md; every recipe starts with the command that runs it."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    quiet_libraries()
    command: Callable[[argparse.Namespace, Console], int] = options.command
    try:
        return command(options, _console())
    except HfcompressError as error:
        errors.print(f"[bold red]error:[/] {_one_line(error)}", markup=True)
        return error.exit_code
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on where it was")
        return 1
    except BrokenPipeError:
        return 1
    except Exception as error:  # no traceback for the user; --debug shows it
        if options.debug:
            raise
        kind = type(error).__name__
        errors.print(f"[bold red]error:[/] {kind}: {_one_line(error)} (--debug shows where)")
        return 1


def _console() -> Console:
    """Standard output; a file or pipe has no width of its own and gets a wide one."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=max(plain.width, 140))


def _one_line(error: BaseException) -> str:
    from rich.markup import escape

    return escape(" ".join(str(error).split()))


# --- commands ----------------------------------------------------------------------------------


def _run(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.recipe.schema import load_recipe
    from hfcompress.recipe.shipped import find_recipe
    from hfcompress.recipe.sweep import run

    recipe = load_recipe(find_recipe(options.recipe), options.set)
    output = Path(options.output or Path("runs") / recipe.name)
    with _Display(console) as display:
        result = run(recipe, output, display, workers=options.workers, engine=options.engine)
    _show_rows(result.rows, console)
    console.print(f"written to [bold]{output}[/]: report.html, curve.png, results.csv")
    for settings, reason in result.failures:
        console.print(f"[red]failed:[/] {settings}: {reason}", markup=True)
    return 1 if result.failures else 0


def _sensitivity(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.recipe.schema import load_recipe
    from hfcompress.recipe.sensitivity import sensitivity
    from hfcompress.recipe.shipped import find_recipe

    recipe = load_recipe(find_recipe(options.recipe), options.set)
    output = Path(options.output or Path("runs") / f"{recipe.name}-layers")
    with _Display(console) as display:
        result = sensitivity(recipe, output, display)
    worst = sorted(result.rows, key=lambda row: -row["drop"])[:5]
    console.print("the layers that lose most:")
    for row in worst:
        layer, sparsity = row["settings"]["prune.targets"][0], row["requested_sparsity"]
        console.print(f"  {row['drop']:+.2%} at {sparsity:.0%}  {layer}", markup=False)
    console.print(f"written to [bold]{output}[/]: heatmap.png, results.csv")
    return 1 if result.failures else 0


def _validate(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.recipe.schema import expand, load_recipe
    from hfcompress.recipe.shipped import find_recipe

    path = find_recipe(options.recipe)
    recipe = load_recipe(path, options.set)
    trials = expand(recipe)
    console.print(f"{path} is a valid recipe with {len(trials)} trial{'s' * (len(trials) != 1)}:")
    for trial in trials:
        steps = ", ".join(step.name for step in trial.steps) or "measure only"
        varies = ", ".join(f"{field}={value}" for field, value in trial.settings.items())
        console.print(f"  {trial.index:3d}  {steps}  {varies}", markup=False)
    return 0


def _compress(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.recipe.compress import compress, data_config
    from hfcompress.recipe.target import CompressTarget
    from hfcompress.report.pipeline import pipeline_rows

    names = ("max_size", "max_drop", "speedup", "minutes", "backend", "mode", "metric")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    shape = {"batch_size": options.batch_size, "length": options.length}
    target = CompressTarget.parse({**given, "latency": shape}, "compress")
    output = Path(options.output or Path("runs") / f"compress-{Path(options.model).name}")
    with _Display(console) as display:
        result = compress(
            options.model, data_config(options.data, options.set), target,
            output=output, task=options.task, progress=display,
        )  # fmt: skip
    if result.rows:
        console.print(pipeline_rows(result.rows))
    console.print(result.sentence, markup=False)
    if result.model is None:
        return 1
    console.print(f'use it: hfcompress predict {result.model} "a sentence"', markup=False)
    return 0


def _inspect(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.recipe.inspect import inspect_model

    with console.status("loading"):
        tables, text = inspect_model(options.model, options.task, options.profiles)
    for table in tables:
        console.print(table)
    console.print(text, markup=False)
    return 0


def _report(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.recipe.sweep import report

    rows = report(options.directory)
    _show_rows(rows, console)
    console.print(f"written to [bold]{options.directory}[/]: report.html, curve.png, results.csv")
    return 0


def _predict(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.quantization.predictor import load

    found: Any = load(options.directory)(options.examples)
    for text, best in zip(options.examples, found, strict=True):
        console.print(f"{best['label']} {best['score']:.4f}  {text}", markup=False)
    return 0


def _bench(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.benchmark.config import BenchConfig
    from hfcompress.benchmark.run import bench
    from hfcompress.recipe.yaml import config_of_options
    from hfcompress.report.bench_table import bench_table, environment_line

    given = {name: getattr(options, name) for name in BenchConfig.model_fields}
    config = config_of_options(BenchConfig, given)
    with _Display(console) as display:
        result = bench(options.models, config, options.output, display)
    console.print(environment_line(result.environment), markup=False)
    console.print(bench_table(result.rows))
    console.print(f"written to [bold]{options.output}[/]: bench.png, bench.json, bench.csv")
    return 0


def _recipes(options: argparse.Namespace, console: Console) -> int:
    from hfcompress.recipe.shipped import headline, shipped_recipes

    for name, path in shipped_recipes().items():
        console.print(f"{name:28s} {headline(path)}", markup=False)
    return 0


def _show_rows(rows: list[dict[str, Any]], console: Console) -> None:
    from hfcompress.report.pipeline import is_pipeline, pipeline_rows, pipeline_sentence
    from hfcompress.report.sweet_spot import sweet_spot_sentence
    from hfcompress.report.table import rows_table

    if is_pipeline(rows):
        console.print(pipeline_rows(rows))
        console.print(pipeline_sentence(rows))
    elif rows:
        console.print(rows_table(rows))
        console.print(sweet_spot_sentence(rows))


# --- what is shown while a run works -----------------------------------------------------------


class _Display(Progress):
    """Two bars: trials, and the piece of work at hand; notes and rows scroll above them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Bars(
            TextColumn("{task.description:42.42}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self.trials = self.bars.add_task("trials", total=None)
        self.piece = self.bars.add_task("starting", total=None)

    def __enter__(self) -> _Display:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def sweep(self, done: int, total: int) -> None:
        self.bars.update(self.trials, completed=done, total=total)

    def stage(self, text: str) -> None:
        self.bars.reset(self.piece, description=text, total=None)

    def work(self, done: int, total: int) -> None:
        self.bars.update(self.piece, completed=done, total=total)

    def note(self, text: str) -> None:
        self.console.print(f"note: {text}", markup=False)

    def row(self, row: dict[str, Any]) -> None:
        settings = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
        self.console.print(
            f"{row['metric']} {row['value']:.2%} ({row['low']:.1%} to {row['high']:.1%}), "
            f"sparsity {row['actual_sparsity']:.2%}, {row['seconds']:.1f} s   {settings}",
            markup=False,
        )


# --- arguments ---------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hfcompress", description="Compress Hugging Face models and see what it costs.",
        epilog=_EPILOG,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"hfcompress {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "run a recipe; go on where it stopped")
    _recipe_arguments(run)
    run.add_argument("--output", metavar="DIR", help="folder of the run (default: runs/NAME)")
    run.add_argument("--workers", type=int, default=1, metavar="N", help="trials side by side")
    run.add_argument(
        "--engine", choices=("process", "ray"), default="process", help="what the workers are"
    )

    sensitivity = _command(
        commands, "sensitivity", _sensitivity, "prune one layer at a time, draw a heatmap"
    )
    _recipe_arguments(sensitivity)
    sensitivity.add_argument("--output", metavar="DIR", help="folder (default: runs/NAME-layers)")

    validate = _command(commands, "validate", _validate, "check a recipe without loading anything")
    _recipe_arguments(validate)

    _compress_arguments(_command(
        commands, "compress", _compress, "search for a model that is small and fast enough"
    ))  # fmt: skip

    inspect = _command(commands, "inspect", _inspect, "parameters, sizes, sparsity of a model")
    inspect.add_argument("model", metavar="MODEL", help="hub name, folder or pkg://PACKAGE/PATH")
    inspect.add_argument("--task", default="text-classification", help="decides the Auto class")
    inspect.add_argument(
        "--profiles", action="store_true", help="say where it could run: microcontroller, phone ..."
    )

    bench = _command(commands, "bench", _bench, "time models in every engine that is installed")
    bench.add_argument("models", metavar="MODEL", nargs="+", help="hub name, folder, int8 folder")
    for name, text in _bench_options().items():
        bench.add_argument(f"--{name}", metavar=name.upper(), help=text)
    bench.add_argument("--output", metavar="DIR", default="runs/bench", help="default: runs/bench")

    report = _command(commands, "report", _report, "draw table, curves and page of a run again")
    report.add_argument("directory", metavar="DIR", help="folder of a run")

    predict = _command(commands, "predict", _predict, "classify texts or images, quantized")
    predict.add_argument("directory", metavar="DIR", help="folder of a quantized model")
    predict.add_argument("examples", metavar="TEXT|IMAGE", nargs="+", help="texts, or image files")

    _command(commands, "recipes", _recipes, "list the recipes that come with hfcompress")
    return parser


def _bench_options() -> dict[str, str]:
    """The fields of a bench's config, with their help; lists are written 1,32."""
    from hfcompress.benchmark.config import BenchConfig

    return {name: str(field.description) for name, field in BenchConfig.model_fields.items()}


def _command(
    commands: Any, name: str, function: Callable[..., int], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--debug", action="store_true", help="show where an unexpected error arose")
    parser.set_defaults(command=function)
    return parser


def _compress_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="hub name, folder or pkg://PACKAGE/PATH")
    parser.add_argument("--data", metavar="DATA", help="what to learn from and to measure on")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[],
        help="a field of the data: name=sst2, text=sentence, max_length=128, max_train=7000",
    )  # fmt: skip
    parser.add_argument("--max-size", metavar="SIZE", help="of the model's files: 10MB, 500KB")
    parser.add_argument("--max-drop", type=float, metavar="POINTS", help="may be lost (default 1)")
    parser.add_argument("--speedup", type=float, metavar="X", help="times faster than torch fp32")
    parser.add_argument("--minutes", type=float, metavar="N", help="go on for so long for less")
    parser.add_argument("--backend", metavar="NAME", help="engine (default onnxruntime)")
    parser.add_argument("--mode", metavar="MODE", help="of its quantization")
    parser.add_argument("--metric", metavar="NAME", help="what may drop (default accuracy)")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="speed: examples")
    parser.add_argument("--length", type=int, default=32, metavar="N", help="speed: tokens of each")
    parser.add_argument("--task", default="text-classification", help="decides the Auto class")
    parser.add_argument("--output", metavar="DIR", help="folder (default runs/compress-MODEL)")


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file or a shipped recipe's name")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[],
        help="change a field: model=FOLDER, data.path=FILE, prune.scope=global, "
        "'grid.prune.sparsity=[0,0.5]'",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
