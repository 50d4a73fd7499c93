"""``hfcompress inspect``, ``check`` and ``feasibility``: what a model consists of, what compression
would do to it, and where it could run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import nn

from hfcompress.benchmarking.check import CheckReport, check
from hfcompress.benchmarking.feasibility import feasibility
from hfcompress.calibration.moments import weight_of
from hfcompress.cli.display import Display
from hfcompress.cli.output import print_json
from hfcompress.measure.profiles import MEGABYTE, Fit, fits_of_bytes, fits_of_model
from hfcompress.measure.size import CompressionMetrics
from hfcompress.measure.weights import analyze_weight_distribution
from hfcompress.models.architectures import family_of
from hfcompress.models.loading import ModelConfig, load_model
from hfcompress.pruning.targets import default_exclusions, weight_matrices
from hfcompress.quantization.manifest import MANIFEST, read_manifest
from hfcompress.report.feasibility import draw_feasibility, feasibility_table
from hfcompress.tasks.registry import find_task, task_of_checkpoint
from hfcompress.utils import Row, atomic_write


@dataclass(frozen=True)
class Inspected:
    """What `inspect_model` finds: the same figures as tables, one sentence and plain data."""

    tables: list[Table]
    sentence: str
    row: Row


def inspect_model(path: str, task: str | None, profiles: bool = False) -> Inspected:
    """Tables of a model's size and layers, and a closing sentence.

    Args:
        path: hub name, folder or pkg://PACKAGE/PATH; or a folder of a quantized model.
        task: decides the Auto class; None takes that which the checkpoint was saved for.
        profiles: say which deployment profiles it fits, in the layers' place.

    Raises:
        SourceError: no such model.
        ModelError: a quantized folder that cannot be read, or a checkpoint of no known task.
    """
    if (Path(path) / MANIFEST).is_file():
        return _inspect_quantized(path, profiles)
    known = task_of_checkpoint(path) if task is None else find_task(task)
    model = load_model(ModelConfig(path=path), known).model
    matrices = weight_matrices(model)
    targets = matrices.keys() - default_exclusions(model, matrices).keys()
    family = family_of(model)
    metrics = CompressionMetrics(model, [name for name in matrices if name in targets])
    closing = (
        f"{type(model).__name__}, family {getattr(model.config, 'model_type', 'unknown')!r}"
        f"{'' if family else ' (not in the table of known families)'}; "
        f"{len(targets)} of {len(matrices)} layers are pruned by default"
    )
    fits = fits_of_model(model) if profiles else []
    row: Row = {
        "model": path,
        "architecture": type(model).__name__,
        "pruned_by_default": sorted(targets),
        **metrics.to_dict(),
        **({"profiles": [asdict(fit) for fit in fits]} if profiles else {}),
    }
    second = _fits(fits) if profiles else _layers(model, set(targets))
    return Inspected([_totals(metrics), second], closing, row)


def inspect_command(options: argparse.Namespace, console: Console) -> int:
    """Run ``hfcompress inspect``; returns the exit code."""
    with Display(console, options.quiet) as display:
        display.stage("loading")
        found = inspect_model(options.model, options.task, options.profiles)
    if options.json:
        print_json([found.row])
    else:
        console.print(*found.tables, sep="\n")
    console.print(found.sentence)
    return 0


def check_command(options: argparse.Namespace, console: Console) -> int:
    """Run ``hfcompress check``; returns the exit code, 1 where a verb fails."""
    with Display(console, options.quiet) as display:
        report = check(options.model, display)
    if options.json:
        print_json([report.to_dict()])
    else:
        console.print(check_table(report))
    return 0 if report.passed else 1


def feasibility_rows(options: argparse.Namespace, console: Console) -> list[Row]:
    """Run ``hfcompress feasibility``: show the table, write the picture, return the rows."""
    with Display(console, options.quiet) as display:
        found = feasibility(options.models, options.length, display)
    rows = [item.to_dict() for item in found]
    if not options.json:
        console.print(feasibility_table(rows))
    for note in dict.fromkeys(note for item in found for note in item.notes):
        console.print(note)
    picture = atomic_write(options.picture, draw_feasibility(rows))
    if not options.quiet:
        console.print(f"written to {picture}")
    return rows


def check_table(report: CheckReport) -> Table:
    """The table of `hfcompress check`: a row for each verb."""
    title = f"{report.model}: {report.architecture}, {report.parameters:,} parameters"
    table = Table(title=title, title_justify="left")
    for column in ("verb", "outcome", "would change", "leaves alone, and why", "after reloading"):
        table.add_column(column, overflow="fold")
    for verb in report.verbs:
        same = "" if verb.difference is None else f"logits to {verb.difference:.1g}"
        cells = (verb.touched or verb.reason, verb.left, same if verb.status == "works" else "")
        if verb.status == "fails" and verb.touched:
            cells = (verb.touched, verb.left, verb.reason)
        table.add_row(verb.verb, verb.status, *cells)
    return table


def _inspect_quantized(path: str, profiles: bool) -> Inspected:
    """What a quantized folder says of itself."""
    manifest = read_manifest(Path(path))
    done = manifest["done"]
    table = Table(title="quantized")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for name, text in (
        ("engine", f"{manifest['backend']}, {done['mode']}"),
        ("bytes of the model's own files", f"{done['bytes']:,}"),
        ("bytes that are integers, of the fp32 model's", f"{done['share_of_bytes']:.1%}"),
        ("multiply-accumulates with integer weights", f"{done['share_of_macs']:.1%}"),
        ("quantized modules", str(done["quantized_modules"])),
        *((f"left alone: {why}", str(count)) for why, count in done["left_alone"].items()),
    ):
        table.add_row(name, text)
    fits = fits_of_bytes(done["bytes"]) if profiles else []
    row: Row = {
        "model": path,
        "architecture": manifest["model"],
        "backend": manifest["backend"],
        "inputs": list(manifest["inputs"]),
        **done,
        **({"profiles": [asdict(fit) for fit in fits]} if profiles else {}),
    }
    tables = [table, *([_fits(fits)] if profiles else [])]
    return Inspected(tables, f"{manifest['model']}, reads {', '.join(manifest['inputs'])}", row)


def _fits(fits: Sequence[Fit]) -> Table:
    table = Table(title="deployment profiles (the model's own files)")
    for column in ("profile", "below", "as it is", "in int8", "needs", "why the limit"):
        table.add_column(column)
    for fit in fits:
        now = fit.int8 if fit.fp32 is None else fit.fp32
        table.add_row(
            fit.profile.name,
            f"{fit.profile.max_bytes / MEGABYTE:g} MB",
            "fits" if now else "no",
            "fits" if fit.int8 else "no",
            fit.needs,
            fit.profile.why,
        )
    return table


def _totals(metrics: CompressionMetrics) -> Table:
    table = Table(title="size")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for name, text in (
        ("parameters", f"{metrics.parameters:,}"),
        ("non-zero parameters", f"{metrics.nonzero_parameters:,}"),
        ("sparsity, whole model", f"{metrics.sparsity.model:.2%}"),
        ("sparsity of the targets", f"{metrics.sparsity.targets:.2%}"),
        *((f"bytes as saved, {name}", f"{size:,}") for name, size in metrics.bytes.items()),
    ):
        table.add_row(name, text)
    return table


def _layers(model: nn.Module, targets: set[str]) -> Table:
    table = Table(title="layers with weights to compress")
    for column in ("layer", "shape", "zeros", "std", "largest", "pruned by default"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for name, module in weight_matrices(model).items():
        weight = weight_of(module)
        spread = analyze_weight_distribution(weight)
        table.add_row(
            name,
            " x ".join(map(str, weight.shape)),
            f"{spread.zeros / spread.count:.1%}",
            f"{spread.std:.4f}",
            f"{max(-spread.minimum, spread.maximum):.3f}",
            "yes" if name in targets else "",
        )
    return table
