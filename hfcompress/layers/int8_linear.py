"""``Int8Linear``: a Linear whose weight is int8, activations quantized as they come (torch).

Its tensors are plain buffers. A file holds its weight under a Linear's name ``weight``, flat: a
loader that does not know int8 weights then reports a wrong shape; it would initialise a missing
weight at random.
the packed form that torch's kernel wants is made from them on the first call. torch deprecates
its quantized tensors (torch 2.13, 2026-11); while the kernel exists it is the fastest int8 that
torch has without another package.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hfcompress.layers.affine import (
    QuantizedWeight,
    dequantize_layer_weights,
    quantize_layer_weights,
)
from hfcompress.measure.environment import has_fast_int8
from hfcompress.models.matrices import weight_matrix

WEIGHT, SCALE = "weight_int8", "weight_scale"


class Int8Linear(nn.Module):
    """y = x W' + b with W in int8 and x quantized to 8 bits a tensor, affine, on every call.

    Args:
        outputs, inputs: the weight's shape.
        bias: whether there is one.
        device: ``"meta"`` to be filled by a checkpoint.

    Attributes:
        weight_int8: int8 [outputs, inputs].
        weight_scale: fp32 [outputs]; every one the same where one was made for the whole weight.
        bias: fp32 [outputs], or None.
    """

    weight_int8: Tensor
    weight_scale: Tensor

    def __init__(self, outputs: int, inputs: int, bias: bool, device: str | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        values = torch.zeros(outputs, inputs, dtype=torch.int8, device=device)
        self.register_buffer(WEIGHT, values)
        self.register_buffer(SCALE, torch.ones(outputs, device=device))
        self.bias = nn.Parameter(torch.zeros(outputs, device=device)) if bias else None
        self._packed: torch.ScriptObject | None = None

    @classmethod
    def of(cls, module: nn.Linear | Conv1D, per_channel: bool = True) -> Int8Linear:
        """Quantize a Linear or a Conv1D, symmetrically.

        Args:
            module: fp32; it is left as it was.
            per_channel: a scale for each output, not one for the weight.

        Raises:
            ModelError: NaN or infinity in the weight.
        """
        quantized = quantize_layer_weights(weight_matrix(module), per_channel=per_channel)
        outputs, inputs = quantized.values.shape
        bias = cast("Tensor | None", module.bias)
        made = cls(outputs, inputs, bias is not None)
        made.weight_int8.copy_(quantized.values)
        made.weight_scale.copy_(quantized.scale)
        if made.bias is not None and bias is not None:
            made.bias.data.copy_(bias.detach())
        return made.eval()

    @property
    def weight(self) -> Tensor:
        """The dequantized weight, fp32 [outputs, inputs]; computed on every access."""
        values, scale = self.weight_int8, self.weight_scale.float()
        zero = torch.zeros_like(scale, dtype=torch.int8)
        return dequantize_layer_weights(QuantizedWeight(values, scale, zero, 8, 0))

    def forward(self, inputs: Tensor) -> Tensor:
        """fp32 [..., inputs] -> fp32 [..., outputs]."""
        if self._packed is None:
            self._packed = self._pack()
        # Without VNNI pairs of 8-bit products saturate; 7 bits of activations cannot.
        result: Tensor = torch.ops.quantized.linear_dynamic(
            inputs.float(), self._packed, not has_fast_int8()
        )
        return result

    def _save_to_state_dict(
        self, destination: dict[str, Tensor], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = destination.pop(f"{prefix}{WEIGHT}").flatten()

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        if f"{prefix}weight" in state:  # files of earlier versions call it weight_int8
            state[f"{prefix}{WEIGHT}"] = state.pop(f"{prefix}weight").view_as(self.weight_int8)
        super()._load_from_state_dict(state, prefix, *rest)

    def extra_repr(self) -> str:
        """Sizes, as ``nn.Linear`` shows them."""
        return f"in_features={self.in_features}, out_features={self.out_features}, int8"

    def _pack(self) -> torch.ScriptObject:
        scale = self.weight_scale.double()
        zero = torch.zeros(len(scale), dtype=torch.long)
        with warnings.catch_warnings():
            # torch 2.13, 2026-11: quantized tensors are deprecated, its int8 kernel takes no other.
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.*")
            make: Callable[..., Tensor] = torch._make_per_channel_quantized_tensor
            weight = make(self.weight_int8, scale, zero, 0)
        bias = None if self.bias is None else self.bias.detach().float()
        packed: torch.ScriptObject = torch.ops.quantized.linear_prepack(weight, bias)
        return packed

    def __getstate__(self) -> dict[str, object]:
        # The packed form cannot be copied; `forward` makes it again.
        return {**self.__dict__, "_packed": None}


class StoredInt8(nn.Module):
    """The tensors of an `Int8Linear` as files hold them, to be filled by a checkpoint.

    Args:
        outputs, inputs, bias, device: as of `Int8Linear`.
        former: files of an earlier version, which call the weight ``weight_int8``.
    """

    def __init__(
        self, outputs: int, inputs: int, bias: bool, device: str | None = None, former: bool = False
    ) -> None:
        super().__init__()
        self.sizes, self.name = (outputs, inputs), WEIGHT if former else "weight"
        values = torch.zeros(outputs, inputs, dtype=torch.int8, device=device)
        self.register_buffer(self.name, values if former else values.flatten())
        self.register_buffer(SCALE, torch.ones(outputs, device=device))
        self.bias = nn.Parameter(torch.zeros(outputs, device=device)) if bias else None

    def restored(self) -> Int8Linear:
        """The `Int8Linear` with these tensors."""
        made = Int8Linear(*self.sizes, self.bias is not None, "meta")
        made.weight_int8 = self.get_buffer(self.name).view(self.sizes)
        made.weight_scale = cast(Tensor, self.weight_scale)
        made.bias = self.bias
        return made.train(self.training)
