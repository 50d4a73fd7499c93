"""All outputs of a model in eval and in train mode, and how those of two models differ."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Batch, Calibration, run_on
from hfcompress.calibration.hooks import evaluating, tensors_of
from hfcompress.errors import first_line
from hfcompress.inference import without_labels
from hfcompress.measure.macs import frozen

_NEAR = {torch.float32: 1e-3, torch.float64: 1e-5}
"""Largest difference of outputs, as a share of the largest output; some code computes in float32
whatever the weights are."""
_ROWS = 2
_SIDE = 224
"""Height and width of images where neither rows nor the config give them."""
_TOKENS = 8


OTHER_OUTPUTS = "its outputs differ from those with the units masked"


def example_rows(model: nn.Module, calibration: Calibration | None) -> Batch | None:
    """Two rows to run a model on, since what merges rows shows with two.

    They are of the calibration, else noise or the tokens 1, 2, 3 ... as the model's config says;
    None where it does not.
    """
    if calibration is not None:
        return rows_of(calibration.batches[0], _ROWS)
    config = getattr(model, "config", None)
    channels, words = (getattr(config, name, None) for name in ("num_channels", "vocab_size"))
    if isinstance(channels, int):
        size = getattr(config, "image_size", None) or _SIDE
        height, width = (size, size) if isinstance(size, int) else size
        generator = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.randn(_ROWS, channels, height, width, generator=generator)}
    if isinstance(words, int) and words > _TOKENS:
        return {"input_ids": torch.arange(1, 1 + _TOKENS).repeat(_ROWS, 1)}
    return None


def rows_of(batch: Batch, rows: int) -> dict[str, Tensor]:
    """The first rows of a batch without its labels, repeated where it has fewer."""
    inputs = without_labels(batch)
    return {key: v[torch.arange(rows, device=v.device) % len(v)] for key, v in inputs.items()}


def set_training(model: nn.Module) -> None:
    """Put a model into train mode, without dropout."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()


def runs(model: nn.Module, batch: Batch) -> bool:
    """Whether a model can be run on some rows in eval mode."""
    return not isinstance(_outputs(model, batch, training=False), str)


def difference(expected: nn.Module, other: nn.Module, batch: Batch) -> str | None:
    """Describe how two models differ on some rows, in eval or train mode: the end of a sentence.

    Args:
        expected, other: of the same outputs, with buffers that may change.
        batch: rows; labels are not used.

    Returns:
        None where all outputs are alike; random ones need only have the same shapes.
    """
    for training in (False, True):
        wanted = _outputs(expected, batch, training)
        if isinstance(wanted, str):  # the dense model does not run in this mode either
            continue
        found = _outputs(other, batch, training)
        if isinstance(found, str):
            return f"it fails with: {found}"
        if [t.shape for t in found] != [t.shape for t in wanted]:
            return (
                f"its outputs have the shapes {[list(t.shape) for t in found]} in place of "
                f"{[list(t.shape) for t in wanted]}"
            )
        pairs = zip(found, wanted, strict=True)
        if not all(bool((a.isfinite() | ~b.isfinite()).all()) for a, b in pairs):
            return "its outputs are NaN or infinite"
        if not all(map(_near, found, wanted)):
            again = _outputs(expected, batch, training, seed=1)
            if not training or isinstance(again, str) or all(map(_near, again, wanted)):
                return OTHER_OUTPUTS
    return None


def _near(found: Tensor, wanted: Tensor) -> bool:
    if not wanted.is_floating_point() or not wanted.numel():
        return torch.equal(found, wanted)
    near = _NEAR.get(wanted.dtype, 3e-2)
    finite = wanted[wanted.isfinite()]
    scale = float(finite.abs().max()) if len(finite) else 0.0
    return torch.allclose(found, wanted, rtol=0, atol=near * scale + 1e-9, equal_nan=True)


def _outputs(model: nn.Module, batch: Batch, training: bool, seed: int = 0) -> list[Tensor] | str:
    """All tensors that a model returns; or what it raises."""
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    rows = {
        key: value.to(weight.dtype) if weight is not None and value.is_floating_point() else value
        for key, value in rows_of(batch, _ROWS).items()
    }
    with evaluating(model), frozen(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if training:
            set_training(model)
        try:
            return [tensor.clone() for tensor in tensors_of(run_on(model, rows))]
        except Exception as error:  # whatever a forward raises is about this width
            return first_line(error)
