"""``hfcompress inspect``: what a model consists of, and what compression would work on."""

from __future__ import annotations

from rich.table import Table
from torch import nn

from hfcompress.architectures import compressible_modules, default_targets, family_of
from hfcompress.measure.summary import CompressionMetrics
from hfcompress.measure.weights import analyze_weight_distribution
from hfcompress.models import ModelConfig, load_model


def inspect_model(path: str, task: str) -> tuple[list[Table], str]:
    """Tables of a model's size and layers, and a closing sentence.

    Raises:
        SourceError: no such model.
    """
    model = load_model(ModelConfig(path=path), task).model
    targets = default_targets(model)
    family = family_of(model)
    metrics = CompressionMetrics(model, list(targets))
    closing = (
        f"{type(model).__name__}, family {getattr(model.config, 'model_type', 'unknown')!r}"
        f"{'' if family else ' (not in the table of known families)'}; "
        f"{len(targets)} of {len(compressible_modules(model))} layers are pruned by default"
    )
    return [_totals(metrics), _layers(model, set(targets))], closing


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
    for name, module in compressible_modules(model).items():
        weight = module.weight
        assert isinstance(weight, nn.Parameter)
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
