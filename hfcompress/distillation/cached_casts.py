"""``CachedCasts``: bf16 copies of a frozen model's weights for autocast (torch only)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

# Layers whose weights autocast casts in every forward pass.
_CAST = (nn.Linear, nn.Conv1d, nn.Conv2d)


class CachedCasts:
    """Runs a model under bf16 autocast without casting its weights in every forward pass.

    The outputs equal those of autocast. The model does not change; weights that changed since the
    last call are cast again.

    Args:
        model: the model to run; the casts take half the memory of its weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._sources: list[tuple[Tensor, int]] = []  # each weight and its version
        self._casts: dict[str, Tensor] = {}

    def __call__(self, inputs: dict[str, Tensor]) -> object:
        """Return the model's outputs; call it under autocast."""
        self._refresh()
        outputs: object = functional_call(self.model, self._casts, (), inputs, tie_weights=False)
        return outputs

    def _refresh(self) -> None:
        weights = {
            f"{path}.{name}" if path else name: weight
            for path, module in self.model.named_modules()
            if isinstance(module, _CAST)
            for name, weight in module.named_parameters(recurse=False)
            if weight.dtype == torch.float32
        }
        same = len(weights) == len(self._sources) and all(
            weight is seen and weight._version == version
            for weight, (seen, version) in zip(weights.values(), self._sources, strict=True)
        )
        if not same:
            self._casts = {name: w.detach().bfloat16() for name, w in weights.items()}
            self._sources = [(weight, weight._version) for weight in weights.values()]
