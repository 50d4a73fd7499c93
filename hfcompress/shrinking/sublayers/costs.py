"""Costs of sublayers by width: multiply-accumulates, parameters, bytes or milliseconds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hfcompress.errors import ConfigError
from hfcompress.measure.size import count_parameters
from hfcompress.models.matrices import weight_matrix
from hfcompress.models.sublayers import Sublayer, sublayers
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.widths import Allowed, Costs


def unit_macs(model: nn.Module, part: Sublayer, length: float) -> float:
    """Multiply-accumulates of one head or neuron for one token of the first layer.

    Args:
        model: of a known family.
        part: the sublayer.
        length: tokens that each token attends to, where there are no windows.
    """
    outputs = weight_matrix(part.out(model)).shape[0]
    inputs = sum(
        weight_matrix(model.get_submodule(name)).shape[1] * part.copies for name in part.producers
    )
    attention = 2 * (part.window or length) * part.size if part.kind == "heads" else 0.0
    return (part.size * (inputs + outputs) + attention) * part.share


def macs_costs(
    model: nn.Module, parts: Sequence[Sublayer], allowed: Allowed, length: float, goal: float
) -> Costs:
    """For a number of multiply-accumulates that the layers keep, for each token."""
    each = {part.name: unit_macs(model, part, length) for part in parts}
    table = {part.name: {w: each[part.name] * w for w in allowed[part.name]} for part in parts}
    fixed = layer_macs(model, [p for p in sublayers(model) if p.name not in each], length)
    return Costs(table, goal - fixed, fixed, "multiply-accumulates for each token")


def layer_macs(model: nn.Module, parts: Sequence[Sublayer], length: float) -> float:
    """Multiply-accumulates of all sublayers for one token."""
    return sum(unit_macs(model, part, length) * part.units(model) for part in parts)


def size_costs(
    model: nn.Module,
    dense: nn.Module,
    parts: Sequence[Sublayer],
    allowed: Allowed,
    config: ShrinkConfig,
    progress: float,
) -> Costs:
    """For a number of parameters, or of bytes.

    Args:
        model: as it is now.
        dense: as it was.
        parts: sublayers that may lose units.
        allowed: their widths.
        config: which of the two, and how many.
        progress: 1 for the budget itself; less for a round before.

    Raises:
        ConfigError: the dense model is smaller than that.
    """
    in_bytes = config.bytes is not None
    wish = config.bytes if config.bytes is not None else config.parameters
    assert wish is not None
    count = _bytes if in_bytes else count_parameters
    unit = "bytes" if in_bytes else "parameters"
    before, whole = count(dense), count(model)
    if wish > before:
        raise ConfigError(
            f"the budget of {wish:,} {unit} is above the dense model, which has {before:,}; "
            f"write less"
        )
    goal = before * (wish / before) ** progress
    table = {
        part.name: {w: float(_unit_size(model, part, in_bytes) * w) for w in allowed[part.name]}
        for part in parts
    }
    fixed = whole - sum(table[part.name][part.units(model)] for part in parts)
    return Costs(table, goal - fixed, fixed, unit)


def _unit_size(model: nn.Module, part: Sublayer, in_bytes: bool) -> int:
    def size(tensor: Tensor, numbers: int) -> int:
        return numbers * (tensor.element_size() if in_bytes else 1)

    out = weight_matrix(part.out(model))
    total = size(out, out.shape[0])
    tables = [model.get_parameter(name) for name in part.tables]
    for name in part.producers:
        linear = model.get_submodule(name)
        weight = weight_matrix(linear)
        total += size(weight, weight.shape[1] * part.copies)
        bias = getattr(linear, "bias", None)
        if bias is not None:
            total += size(bias, part.copies)
    each = sum(size(table, table.numel() // table.shape[-1]) for table in tables)
    return total * part.size + each


def _bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())
