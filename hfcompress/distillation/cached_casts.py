"""``KeptCasts``: what autocast makes of a frozen model's weights, made once (torch only)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

# The layers whose weights autocast rounds in every forward pass.
_CAST = (nn.Linear, nn.Conv1d, nn.Conv2d)


class KeptCasts:
    """Runs a model under bf16 autocast without rounding its weights anew each time.

    The outputs are those of autocast. The model is not changed; weights that were changed
    meanwhile are rounded again.

    Args:
        model: whose weights; they take half as much memory again.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._cast: list[tuple[Tensor, int]] = []  # each weight, and its version
        self._casts: dict[str, Tensor] = {}

    def __call__(self, inputs: dict[str, Any]) -> Any:
        """The model's outputs; to be called under autocast."""
        self._refresh()
        return functional_call(self.model, self._casts, (), inputs, tie_weights=False)

    def _refresh(self) -> None:
        weights = {
            f"{path}.{name}" if path else name: weight
            for path, module in self.model.named_modules()
            if isinstance(module, _CAST)
            for name, weight in module.named_parameters(recurse=False)
            if weight.dtype == torch.float32
        }
        same = len(weights) == len(self._cast) and all(
            weight is seen and weight._version == version
            for weight, (seen, version) in zip(weights.values(), self._cast, strict=True)
        )
        if not same:
            self._casts = {name: w.detach().bfloat16() for name, w in weights.items()}
            self._cast = [(weight, weight._version) for weight in weights.values()]
