"""``SparseLinear``: a Linear that skips its zeros where that is possible, dense everywhere else."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfcompress.layers.sparse_products import CsrProduct, KernelProduct, Product

Method = Literal["kernel", "csr"]
_PRODUCTS: dict[Method, Any] = {"kernel": KernelProduct, "csr": CsrProduct}


class SparseLinear(nn.Linear):
    """A Linear whose product skips zeros: fp32 on CPU, no gradient, not traced or compiled.

    Everywhere else (training, autocast, another device or type, export) it computes what
    ``nn.Linear`` computes. It keeps the dense weight under the same name, so that saving, training
    on and moving work as before; a changed weight is noticed and read anew. Sums are taken in
    another order than in a dense product: results differ by rounding.

    Args:
        linear: gives weight and bias, which are shared and not copied.
        method: ``kernel`` (the extra ``sparse``) or ``csr``.

    Raises:
        MissingExtraError: ``kernel`` without llvmlite.
        TargetError: ``kernel`` for a weight with a side shorter than a register.
    """

    def __init__(self, linear: nn.Linear, method: Method = "kernel") -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.method = method
        self._product: Product = _PRODUCTS[method](linear.weight)
        self._read = _version(linear.weight)
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Linear``: [..., inputs] -> [..., outputs]."""
        if not self._skips_zeros(input):
            return F.linear(input, self.weight, self.bias)
        if self._read != _version(self.weight):
            self._product = _PRODUCTS[self.method](self.weight)
            self._read = _version(self.weight)
        rows = input.reshape(-1, self.in_features).contiguous()
        return self._product(rows, self.bias).view(*input.shape[:-1], self.out_features)

    def _skips_zeros(self, input: Tensor) -> bool:
        return (
            input.dtype == self.weight.dtype == torch.float32
            and input.device.type == self.weight.device.type == "cpu"
            and input.numel() > 0
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and not torch._C._get_tracing_state()
        )

    def dense(self) -> nn.Linear:
        """A plain Linear with the same weight and bias, shared."""
        linear = nn.Linear(1, 1, device="meta")
        linear.in_features, linear.out_features = self.in_features, self.out_features
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """As ``nn.Linear`` prints it, and how zeros are skipped."""
        return f"{super().extra_repr()}, method={self.method}"

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseLinear:
        """A copy with a weight of its own; compiled code is shared."""
        return type(self)(copy.deepcopy(self.dense(), memo), self.method)


def _version(weight: Tensor) -> tuple[int, int, int]:
    """Changes whenever the weight is replaced or written into."""
    written = 0 if weight.is_inference() else weight._version
    return id(weight), weight.data_ptr(), written
