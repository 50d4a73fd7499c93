"""What commands print: rows, plans, predictions, notes, and the files of a run."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.errors import ConfigError

if TYPE_CHECKING:  # rich takes tenths of a second to import
    from rich.console import Console
    from rich.table import Table

    from hfcompress.sweep.plan import Plan
    from hfcompress.sweep.run import SweepResult
    from hfcompress.utils import Row

_MOST_LINES = 50  # of a plan


def print_json(rows: Iterable[Row]) -> None:
    """Print each row as one line of JSON on standard output."""
    for row in rows:
        print(json.dumps(row, default=float))  # numpy's numbers


def note_on(console: Console, options: argparse.Namespace) -> Callable[[str], None]:
    """Return what prints a note, unless notes are not wanted."""
    return lambda text: None if options.quiet else console.print(f"note: {text}")


def show_written(output: str | Path, console: Console, options: argparse.Namespace) -> None:
    """Name the files of a run's report that are in its folder."""
    if options.quiet:
        return
    known = ("report.html", "curve.png", "bars.png", "heatmap.png", "pareto.png", "results.csv")
    names = [name for name in known if (Path(output) / name).is_file()]
    console.print(f"written to {output}: {', '.join(names)}")


def show_rows(rows: Sequence[Row], console: Console, options: argparse.Namespace) -> None:
    """Print rows as a table with their main result, or as lines of JSON."""
    if options.json:
        print_json(rows)
        return
    from hfcompress.report.page import headline
    from hfcompress.report.pipeline import is_pipeline, pipeline_rows
    from hfcompress.report.table import rows_table

    if rows:
        console.print(pipeline_rows(rows) if is_pipeline(rows) else rows_table(rows))
        console.print(headline(rows))


def settings_lines(found: Plan) -> list[str]:
    """A line for each trial to run; of many the first ones, and how many more there are."""
    lines = [
        ", ".join(f"{field}={value}" for field, value in settings.items()) or "the only trial"
        for settings in found.pending[:_MOST_LINES]
    ]
    more = len(found.pending) - len(lines)
    return [*lines, f"... and {more:,} more"] if more else lines


def plan_table(found: Plan) -> Table:
    """A row for each step: trials, models to make, how many are kept, seconds of training."""
    from rich.table import Table

    table = Table()
    table.add_column("step")
    for column in ("trials", "models", "kept already", "training, s"):
        table.add_column(column, justify="right")
    for step in found.steps:
        seconds = "unknown" if step.seconds is None else f"{step.seconds:.1f}"
        counts = (step.trials, step.models, step.kept)
        table.add_row(step.name, *(f"{count:,}" for count in counts), seconds)
    return table


def show_failures(result: SweepResult, console: Console) -> int:
    """Say which trials failed and why; the exit code."""
    from rich.text import Text

    for settings, reason in result.failures:
        where = ", ".join(f"{key}={value}" for key, value in settings.items()) or "the only trial"
        console.print(Text("failed:", style="red"), f"{where}: {reason}")
    if result.failures:
        console.print("the same command with --retry-failed runs the failed trials again")
    return 1 if result.failures else 0


def prediction_rows(directory: str | Path, examples: Sequence[str]) -> list[Row]:
    """Return what a model's folder answers: labels, entities, tokens, shares of pixels, or answers
    to questions.

    Args:
        directory: that ``quantize(...).save`` wrote.
        examples: texts, or paths of images; of a model that answers questions each question and
            its context.

    Raises:
        ConfigError: a question without its context.
        BadInputError: as `hfcompress.load`.
    """
    from hfcompress.quantization.load import load

    predictor: Any = load(directory)
    if predictor.kind == "spans":
        if len(examples) % 2:
            raise ConfigError(
                'this model reads a question and its context: predict FOLDER "Who wrote it?" '
                '"Ada Lovelace wrote it in 1843."'
            )
        pairs = list(zip(examples[::2], examples[1::2], strict=True))
        found = zip(pairs, predictor(pairs), strict=True)
        return [{"question": question, **best} for (question, _), best in found]
    if predictor.kind == "tokens":
        tagged = predictor(list(examples), aggregation_strategy="simple")
        return [
            {"text": text, "entities": [dict(entity) for entity in entities]}
            for text, entities in zip(examples, tagged, strict=True)
        ]
    if predictor.kind == "masked":
        return [{"text": text, "masks": _by_mask(predictor(text))} for text in examples]
    if predictor.kind == "pixels":
        return [{"text": path, "segments": _shares(predictor(path))} for path in examples]
    labelled = zip(examples, predictor(list(examples)), strict=True)
    return [{"text": text, **best} for text, best in labelled]


def _by_mask(found: list[Any]) -> list[list[Row]]:
    """Return the answers for each mask of a text; of one mask the pipeline gives them alone."""
    return found if isinstance(found[0], list) else [found]


def _shares(found: list[Any]) -> list[Row]:
    """Return the labels of an image and their shares of its pixels."""
    return [
        {"label": one["label"], "share": one["mask"].histogram()[255] / math.prod(one["mask"].size)}
        for one in found
    ]


def prediction_lines(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines that show `prediction_rows`."""
    for row in rows:
        if "question" in row:
            yield f"{row['answer']} {row['score']:.4f}  {row['question']}"
        elif "label" in row:
            yield f"{row['label']} {row['score']:.4f}  {row['text']}"
        elif "segments" in row:
            yield row["text"]
            yield from (f"  {one['label']} {one['share']:.4f}" for one in row["segments"])
        elif "masks" in row:
            yield row["text"]
            for one in (one for place in row["masks"] for one in place):
                yield f"  {one['token_str']} {one['score']:.4f}  {one['sequence']}"
        else:
            yield row["text"]
            for entity in row["entities"]:
                words = row["text"][entity["start"] : entity["end"]]
                yield f"  {entity['entity_group']} {entity['score']:.4f}  {words}"
            if not row["entities"]:
                yield "  no entities"
