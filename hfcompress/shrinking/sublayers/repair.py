"""One sublayer's choice: which units stay, and the output projection that makes up for the rest."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hfcompress.calibration.moments import Moments
from hfcompress.models.matrices import weight_matrix, write_matrix
from hfcompress.models.sublayers import Sublayer
from hfcompress.models.surgery import keep_units
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.obs import refit


@dataclass(frozen=True)
class Projection:
    """An output projection without some units.

    Attributes:
        keep: the units that are left, ascending.
        weight: outputs x (units left * size).
        bias: outputs; None where the projection has none.
    """

    keep: Tensor
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Centred:
    """Moments of inputs and wanted outputs that a bias cannot account for.

    Attributes:
        gram: inputs x inputs, about the means where there is a bias.
        cross: outputs x inputs, likewise.
        inputs, outputs: the means.
    """

    gram: Tensor
    cross: Tensor
    inputs: Tensor
    outputs: Tensor


def centred(linear: nn.Module, moments: Moments) -> Centred:
    """The moments of a layer with or without a bias."""
    assert moments.cross is not None
    assert moments.output is not None
    gram, mean = moments.gram[0].double(), moments.mean[0].double()
    cross, output = moments.cross[0].double(), moments.output[0].double()
    if _bias(linear) is not None:
        gram = gram - torch.outer(mean, mean)
        cross = cross - torch.outer(output, mean)
    return Centred(gram, cross, mean, output)


def repaired(
    part: Sublayer,
    model: nn.Module,
    keep: Tensor,
    moments: Centred | None,
    config: ShrinkConfig,
) -> Projection:
    """The output projection for the units that are left.

    Args:
        part: the sublayer, all its units still there.
        model: the model as it is.
        keep: the units that stay.
        moments: of the projection's inputs; None only for repair ``none``.
        config: which repair, and its damping.
    """
    linear, columns = part.out(model), part.columns(keep)
    weight, bias = weight_matrix(linear), _bias(linear)
    if moments is None or config.resolved_repair == "none":
        return Projection(keep, weight[:, columns], bias)
    new = weight[:, columns].double()
    if config.resolved_repair == "ridge":
        new = refit(weight.double(), moments.gram, moments.cross, columns, config.damping)
    if bias is not None:
        bias = (moments.outputs - new @ moments.inputs[columns]).to(bias)
    return Projection(keep, new.to(weight), bias)


@torch.no_grad()
def install(part: Sublayer, model: nn.Module, projection: Projection) -> None:
    """Apply `projection` in place: drop the units and replace the output projection."""
    keep_units(model, part, projection.keep)
    linear = part.out(model)
    write_matrix(linear, projection.weight)
    if isinstance(linear.bias, Tensor) and projection.bias is not None:
        linear.bias.data = projection.bias.detach().clone()


@torch.no_grad()
def with_masks(
    dense: nn.Module,
    model: nn.Module,
    parts: Sequence[Sublayer],
    kept: Mapping[str, Tensor],
    trained: bool,
) -> nn.Module:
    """A copy of the dense model whose lost units are masked, with the repaired projections.

    Args:
        dense: without the layers that were dropped; not changed.
        model: shrunk from it.
        parts: the sublayers of both.
        kept: for each part the units of the dense model that are left.
        trained: whether all weights of the model have changed, and not its projections alone.
    """
    wide = copy.deepcopy(dense)
    if trained:
        _take_weights(wide, model, parts, kept)
    for part in parts:
        out, small = part.out(wide), part.out(model)
        weight_matrix(out).zero_()[:, part.columns(kept[part.name])] = weight_matrix(small)
        bias = _bias(small)
        if bias is not None:
            wide.get_parameter(f"{part.name}.bias").copy_(bias)
    return wide


def _take_weights(
    wide: nn.Module, model: nn.Module, parts: Sequence[Sublayer], kept: Mapping[str, Tensor]
) -> None:
    """Copy a trained smaller model's weights to where they were in the wide one."""
    small = model.state_dict()
    for name, tensor in wide.state_dict().items():
        if tensor.shape == small[name].shape:
            tensor.copy_(small[name])
    for part in parts:
        units, keep = part.units(wide), kept[part.name]
        for path in part.producers if len(keep) < units else ():
            rows = part.rows(keep, units)
            weight_matrix(wide.get_submodule(path))[rows] = weight_matrix(model.get_submodule(path))
            bias = _bias(model.get_submodule(path))
            if bias is not None:
                wide.get_parameter(f"{path}.bias")[rows] = bias
        for table in part.tables:
            wide.get_parameter(table)[..., keep] = model.get_parameter(table)


def _bias(linear: nn.Module) -> Tensor | None:
    bias = getattr(linear, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None
