"""How much each output of each layer moves the model's logits: from one backward pass, no labels.

The gradient of a random combination of the centred logits, squared and averaged over tokens. With
two classes this is the gradient of the margin. It weighs the outputs in a reconstruction, and
turns a layer's output error into an estimate of how far the logits move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.errors import CalibrationError
from hfcompress.pruning.calibration import Calibration, fingerprint
from hfcompress.pruning.moments import output_rows
from hfcompress.pruning.tracing import evaluating, first_tensor


def output_importance(
    model: nn.Module, modules: Mapping[str, nn.Module], calibration: Calibration, seed: int
) -> dict[str, Tensor]:
    """Mean squared gradient of each output, groups x outputs, by module.

    Kept by the calibration for the same weights, modules and seed.

    Raises:
        CalibrationError: a module that does not reach the model's output.
    """
    key = ("importance", fingerprint(model), seed, *modules)
    return calibration.kept(key, lambda: _collect(model, modules, calibration, seed))


def _collect(
    model: nn.Module, modules: Mapping[str, nn.Module], calibration: Calibration, seed: int
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    squares: dict[str, Tensor] = {}
    counts = dict.fromkeys(modules, 0)
    with evaluating(model), torch.enable_grad():
        for index in range(len(calibration.batches)):
            outputs, logits = _forward(model, modules, calibration, index)
            centred = logits - logits.mean(-1, keepdim=True)
            mix = torch.randn(centred.shape, generator=generator).to(centred)
            gradients = torch.autograd.grad(
                (centred * mix).sum(), list(outputs.values()), allow_unused=True
            )
            for name, gradient in zip(outputs, gradients, strict=True):
                if gradient is None:
                    raise CalibrationError(f"{name} does not reach the model's output; exclude it")
                rows = output_rows(modules[name], gradient, calibration.tokens(index))
                counts[name] += rows.shape[1]
                square = rows.float().square().sum(1)
                squares[name] = squares[name] + square if name in squares else square
    return {name: squares[name] / max(counts[name], 1) for name in modules}


def _forward(
    model: nn.Module, modules: Mapping[str, nn.Module], calibration: Calibration, index: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Outputs of the modules, kept for the backward pass, and the logits."""
    outputs: dict[str, Tensor] = {}
    handles = []
    for name, module in modules.items():

        def note(_: nn.Module, __: Any, output: Any, name: str = name) -> Tensor | None:
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            outputs[name] = output
            return output  # type: ignore[no-any-return]

        handles.append(module.register_forward_hook(note))
    try:
        result = calibration.run(model, index)
    finally:
        for handle in handles:
            handle.remove()
    logits = getattr(result, "logits", None)
    return outputs, logits if isinstance(logits, Tensor) else first_tensor(result)
