"""What the command line takes: every command, its arguments and their help."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import NoReturn

from hfcompress.cli.verbs import VERBS, add_run_arguments, add_verb
from hfcompress.version import __version__

_PROGRAM = "hfcompress"
WITH_ROWS = {
    "run", "sensitivity", "compress", "bench", "feasibility", "report", "compare", "inspect",
    "check", "certify", "predict", "validate", "recipes", *VERBS,
}  # fmt: skip
"""Commands whose result can be lines of JSON."""
_EPILOG = (
    "Documentation and examples: README.md; every recipe starts with the command that runs it."
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line with the nearest right word, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit."""
        if wrong := re.match(r"argument .*: invalid choice: '(.*?)' \(choose from (.*)\)", message):
            known = [name.strip(" '") for name in wrong[2].split(",")]
            what, hint = "command", _near(wrong[1], known)
            if self.prog != _PROGRAM:
                what, hint = message.split(":")[0], hint or f"; known are: {', '.join(known)}"
            message = f"unknown {what} {wrong[1]!r}{hint}"
        self.exit(2, f"error: {message}; write: {self.prog} --help\n")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        """Parse; an option that is not known is answered with the nearest one."""
        options, extra = self.parse_known_args(args, namespace)
        if extra:
            command = self.commands[options.command]
            known = [name for action in command._actions for name in action.option_strings]
            word = next((item for item in extra if item.startswith("-")), extra[0])
            hint = _near(word.partition("=")[0], known) if word.startswith("-") else ""
            command.error(f"{command.prog} takes no {' '.join(extra)!r}{hint}")
        return options

    commands: Mapping[str, Parser] = {}


def _near(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, 1, 0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def make_parser(command: str | None = None) -> Parser:
    """The parser of all commands; ``command`` in its result is the command's name.

    Args:
        command: add the options that this one reads from its config; importing that takes longer
            than all other options. None adds none.
    """
    parser = Parser(
        prog=_PROGRAM, description="Compress Hugging Face models and see what it costs.",
        epilog=_EPILOG,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"hfcompress {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    parser.commands = commands.choices

    run = _command(commands, "run", "run a recipe; go on where it stopped")
    _recipe_arguments(run)
    _resume_arguments(run)
    add_run_arguments(run)
    run.add_argument("--output", metavar="DIR", help="folder of the run (default: runs/NAME)")
    run.add_argument("--workers", type=int, default=1, metavar="N", help="trials side by side")
    run.add_argument(
        "--engine", choices=("process", "ray"), default="process", help="what the workers are"
    )

    run.add_argument(
        "--dry-run", action="store_true",
        help="print what would be done, and about how long it takes; train and write nothing",
    )  # fmt: skip

    sensitivity = _command(
        commands,
        "sensitivity",
        "prune one layer at a time, draw a heatmap",
    )
    _recipe_arguments(sensitivity)
    _resume_arguments(sensitivity)
    add_run_arguments(sensitivity)
    sensitivity.add_argument("--output", metavar="DIR", help="folder (default: runs/NAME-layers)")
    sensitivity.add_argument(
        "--dry-run", action="store_true", help="print what would be done; prune and write nothing"
    )

    validate = _command(commands, "validate", "check a recipe without loading anything")
    _recipe_arguments(validate)

    _compress_arguments(_command(
        commands, "compress", "search for a model that is small and fast enough"
    ))  # fmt: skip

    _certify_arguments(_command(
        commands, "certify", "say how sure it is that a small model loses little"
    ))  # fmt: skip

    inspect = _command(commands, "inspect", "parameters, sizes, sparsity of a model")
    inspect.add_argument("model", metavar="MODEL", help="hub name, folder or pkg://PACKAGE/PATH")
    inspect.add_argument("--task", help="decides the Auto class; default: the checkpoint's own")
    inspect.add_argument(
        "--profiles", action="store_true", help="say where it could run: microcontroller, phone ..."
    )

    check = _command(
        commands, "check", "try every verb on copies of a model; say what each would do"
    )
    check.add_argument("model", metavar="MODEL", help="hub name, folder or pkg://PACKAGE/PATH")

    bench = _command(commands, "bench", "time models in every engine that is installed")
    bench.add_argument("models", metavar="MODEL", nargs="+", help="hub name, folder, int8 folder")
    for name, text in (_bench_options() if command == "bench" else {}).items():
        bench.add_argument(f"--{name}", metavar=name.upper(), help=text)
    bench.add_argument("--output", metavar="DIR", default="runs/bench", help="default: runs/bench")

    feasible = _command(
        commands, "feasibility", "say where models could run: watch, phone, browser, board ..."
    )
    feasible.add_argument(
        "models", metavar="MODEL", nargs="+", help="hub name, folder, int8 folder"
    )
    feasible.add_argument(
        "--length", type=int, default=32, metavar="N", help="tokens of a text (default: 32)"
    )
    feasible.add_argument(
        "--picture", metavar="FILE", default="runs/feasibility.png",
        help="default: runs/feasibility.png",
    )  # fmt: skip

    report = _command(commands, "report", "draw the page of a run again, or of several runs")
    report.add_argument("directories", metavar="DIR", nargs="+", help="folder of a run")
    report.add_argument(
        "--output", metavar="DIR", help="of several: folder of their page (default: runs/report)"
    )

    compare = _command(commands, "compare", "say which of several runs is better, and how sure")
    compare.add_argument(
        "runs", metavar="DIR[:ROW]", nargs="+",
        help="folder of a run: the row that its page names; or DIR:3, DIR:dense, DIR:all",
    )  # fmt: skip

    predict = _command(commands, "predict", "classify texts or images, tag texts, answer questions")
    predict.add_argument("directory", metavar="MODEL", help="folder or hub name, quantized")
    predict.add_argument(
        "examples", metavar="TEXT|IMAGE", nargs="+",
        help="texts, or image files; questions, each with its context",
    )  # fmt: skip

    for verb, text in VERBS.items():
        add_verb(_command(commands, verb, text), verb, command == verb)

    sparsify = _command(commands, "sparsify", "save a pruned model with its zeros packed")
    sparsify.add_argument("model", metavar="MODEL", help="hub name, folder or pkg://PACKAGE/PATH")
    sparsify.add_argument("--output", metavar="DIR", required=True, help="where to")

    push = _command(commands, "push", "upload a saved model's folder to the hub")
    push.add_argument("directory", metavar="FOLDER", help="of a saved model, of any kind")
    push.add_argument("name", metavar="NAME", help="on the hub: ORG/NAME, or NAME in your account")
    push.add_argument("--private", action="store_true", default=None, help="a new one is private")

    cache = _command(commands, "cache", "list, verify or prune kept models and teachers' outputs")
    cache.add_argument("--verify", action="store_true", help="compare files with their digests")
    cache.add_argument(
        "--older-than", type=float, metavar="DAYS", help="remove what was not used for so long"
    )
    cache.add_argument(
        "--max-size", metavar="SIZE", help="remove what was used longest ago: 10GB, 500MB"
    )
    cache.add_argument("--json", action="store_true", help="print the list as JSON")

    _command(commands, "recipes", "list the recipes that come with hfcompress")

    # Without a line of its own in the help of all commands, which fits a screen.
    shells = commands.add_parser(
        "completion", description="print what completes commands, options and recipes in a shell: "
        "source <(hfcompress completion bash)",
    )  # fmt: skip
    shells.add_argument("shell", choices=("bash", "zsh"), help="which shell")
    shells.set_defaults(command="completion", debug=False)
    return parser


def _bench_options() -> dict[str, str]:
    """The fields of a bench's config, with their help; lists are written 1,32."""
    from hfcompress.benchmarking.config import BenchConfig

    return {name: str(field.description) for name, field in BenchConfig.model_fields.items()}


def _command(
    commands: argparse._SubParsersAction[Parser], name: str, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--debug", action="store_true", help="show where an unexpected error arose")
    parser.add_argument("--quiet", action="store_true", help="show results and errors alone")
    if name in WITH_ROWS:
        parser.add_argument(
            "--json", action="store_true", help="rows as lines of JSON; everything else on stderr"
        )
    parser.set_defaults(command=name)
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
    parser.add_argument(
        "--confidence", type=float, metavar="P", help="say how sure that is, by a bound: 0.95"
    )
    parser.add_argument("--speedup", type=float, metavar="X", help="times faster than torch fp32")
    parser.add_argument("--minutes", type=float, metavar="N", help="go on for so long for less")
    parser.add_argument("--backend", metavar="NAME", help="engine (default onnxruntime)")
    parser.add_argument("--mode", metavar="MODE", help="of its quantization")
    parser.add_argument("--metric", metavar="NAME", help="what may drop (default accuracy)")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="speed: examples")
    parser.add_argument("--length", type=int, default=32, metavar="N", help="speed: tokens of each")
    parser.add_argument(
        "--fixed", action="store_true", help="speed: compiled for that very shape (openvino)"
    )
    parser.add_argument("--task", default="text-classification", help="decides the Auto class")
    parser.add_argument("--output", metavar="DIR", help="folder (default runs/compress-MODEL)")
    parser.add_argument(
        "--dry-run", action="store_true",
        help="print what would be tried, with predicted sizes; train and write nothing",
    )  # fmt: skip
    add_run_arguments(parser)
    _wait_argument(parser)


def _certify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dense", metavar="DENSE", help="hub name or folder of the dense model")
    parser.add_argument("small", metavar="SMALL", help="the smaller model, quantized or not")
    parser.add_argument(
        "--data", metavar="DATA", required=True,
        help="labelled rows that nothing was trained, calibrated or chosen on",
    )  # fmt: skip
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[],
        help="a field of the data: text=sentence, eval=test, max_length=128",
    )  # fmt: skip
    parser.add_argument(
        "--max-drop", type=float, default=1.0, metavar="POINTS", help="may be lost (default 1)"
    )
    parser.add_argument("--confidence", type=float, default=0.95, metavar="P", help="default 0.95")
    parser.add_argument("--task", help="default: what the dense model was saved for")


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file or a shipped recipe's name")
    parser.add_argument(
        "--trust-remote-code", action="store_true",
        help="run code of models and metrics where the recipe asks for it (trust_remote_code)",
    )  # fmt: skip
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[],
        help="change a field: model=FOLDER, data.path=FILE, prune.scope=global, "
        "'grid.prune.sparsity=[0,0.5]'",
    )  # fmt: skip


def _resume_arguments(parser: argparse.ArgumentParser) -> None:
    _wait_argument(parser)
    parser.add_argument(
        "--retry-failed", action="store_true", help="run trials again that failed before"
    )
    parser.add_argument(
        "--fail-fast", action="store_true", help="begin no trial after one that failed"
    )


def _wait_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait", action="store_true", help="wait while another process uses the folder"
    )
