"""Importance of each layer's outputs for the logits: one backward pass, no labels.

The squared gradient of a random combination of the centred logits; with two classes this is the
gradient of the margin. By output (averaged over tokens) and by token (summed over outputs) it
weighs the errors of a reconstruction, and turns a layer's output error into an estimate of how
far the logits move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration, fingerprint
from hfcompress.calibration.hooks import evaluating, predictions_in
from hfcompress.calibration.moments import output_rows
from hfcompress.errors import CalibrationError


@dataclass
class Importance:
    """Squared gradients at one layer's outputs.

    Attributes:
        outputs: groups x outputs, the mean over tokens.
        tokens: for each batch, its tokens' share of the gradient in their row, mean 1; of a module
            that is called several times, one call after the other.
        count: tokens seen.
        matrix: outputs x outputs, summed over tokens; each row's gradient has length one, so that
            the few rows near a decision do not outweigh all others. None unless asked for.
    """

    outputs: Tensor
    tokens: list[Tensor]
    count: int = 0
    matrix: Tensor | None = None


def importance(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    calibration: Calibration,
    seed: int,
    *,
    matrices: bool = False,
    skip_unreached: bool = False,
) -> dict[str, Importance]:
    """The importance of each module's outputs and of the tokens there.

    Kept by the calibration for the same weights, modules and seed.

    Args:
        model: run in eval mode, left as it was.
        modules: ``nn.Linear`` and the like; for matrices, none with groups.
        calibration: rows; labels are not used.
        seed: of the random combination of logits.
        matrices: which directions of the outputs matter, too.
        skip_unreached: leave modules out that do not reach the model's output, instead of raising.

    Raises:
        CalibrationError: a module that does not reach the model's output.
    """
    key = ("importance", fingerprint(model), seed, matrices, *modules)
    found = calibration.kept(key, lambda: _collect(model, modules, calibration, seed, matrices))
    for name in modules:
        if name not in found and not skip_unreached:
            raise CalibrationError(f"{name} does not reach the model's output; exclude it")
    return found


def _collect(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    calibration: Calibration,
    seed: int,
    matrices: bool,
) -> dict[str, Importance]:
    generator = torch.Generator().manual_seed(seed)
    found = {name: Importance(torch.zeros(()), []) for name in modules}
    reached: set[str] = set()
    with evaluating(model), torch.enable_grad():
        for index in range(len(calibration.batches)):
            outputs, predicted = _forward(model, modules, calibration, index)
            total = torch.stack([_mixed(tensor, generator) for tensor in predicted]).sum()
            for name, gradients in _gradients(total, outputs).items():
                if any(gradient is not None for gradient in gradients):
                    reached.add(name)
                known = [
                    torch.zeros_like(output) if gradient is None else gradient
                    for output, gradient in zip(outputs[name], gradients, strict=True)
                ]
                _add(found[name], modules[name], known, calibration.tokens(index), matrices)
    for part in found.values():
        part.outputs = part.outputs / max(part.count, 1)
    return {name: part for name, part in found.items() if name in reached}


def _gradients(
    total: Tensor, outputs: Mapping[str, list[Tensor]]
) -> dict[str, list[Tensor | None]]:
    """The gradients at each module's outputs, call by call; None where one does not count."""
    calls = [output for made in outputs.values() for output in made]
    found: Sequence[Tensor | None] = [None] * len(calls)
    if total.requires_grad and calls:
        found = torch.autograd.grad(total, calls, allow_unused=True)
    every = iter(found)
    return {name: [next(every) for _ in made] for name, made in outputs.items()}


def _add(
    part: Importance,
    module: nn.Module,
    gradients: Sequence[Tensor],
    mask: Tensor | None,
    matrices: bool,
) -> None:
    """Add one batch, in place."""
    shares = [part.outputs.new_zeros(0)]
    for gradient in gradients:
        rows = output_rows(module, gradient, mask).float()
        squares = rows.square()
        part.outputs = part.outputs + squares.sum(1)
        part.count += squares.shape[1]
        by_token = squares.sum((0, 2))
        sums = _row_sums(by_token, len(gradient), mask)
        shares.append(_shares(by_token, sums))
        if matrices:
            unit = rows[0] / sums.sqrt()[:, None]
            product = unit.T @ unit
            part.matrix = product if part.matrix is None else part.matrix + product
    part.tokens.append(torch.cat(shares[1:] or shares))


def _mixed(predicted: Tensor, generator: torch.Generator) -> Tensor:
    """A random combination of the centred predictions."""
    centred = predicted - predicted.mean(-1, keepdim=True)
    return (centred * torch.randn(centred.shape, generator=generator).to(centred)).sum()


def _row_sums(squares: Tensor, rows: int, mask: Tensor | None) -> Tensor:
    """For each token the sum over the tokens of its row."""
    if mask is not None and len(squares) == int(mask.sum()):
        row = mask.nonzero()[:, 0].to(squares.device)
    else:
        row = torch.arange(rows, device=squares.device).repeat_interleave(len(squares) // rows)
    sums = squares.new_zeros(rows).index_add_(0, row, squares)
    return sums[row].clamp_min(torch.finfo(squares.dtype).tiny)


def _shares(squares: Tensor, sums: Tensor) -> Tensor:
    """Each token's share of its row's sum, scaled to a mean of 1.

    Without that, the few rows near a decision would outweigh all others.
    """
    shares = squares / sums
    tiny = torch.finfo(squares.dtype).tiny
    return shares / shares.mean().clamp_min(tiny) if len(shares) else shares


def _forward(
    model: nn.Module, modules: Mapping[str, nn.Module], calibration: Calibration, index: int
) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """Outputs of the modules, call by call, with their graph, and the predictions."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in modules}
    handles = []
    for name, module in modules.items():

        def record(_: nn.Module, __: object, output: Tensor, name: str = name) -> Tensor:
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            outputs[name].append(output)
            return output

        handles.append(module.register_forward_hook(record))
    try:
        result = calibration.run(model, index)
    finally:
        for handle in handles:
            handle.remove()
    return outputs, predictions_in(result)
