"""Ways to multiply tokens with a sparse weight: the compiled kernel, and torch's CSR."""

from __future__ import annotations

import ctypes
import warnings
from typing import Protocol

import torch
from torch import Tensor

from hfcompress.errors import TargetError
from hfcompress.layers.sparse_kernel import ARGUMENTS, Shape, compiled, shape_for_host

_PAGE = 4096  # panels of two threads never share a page
# Blocks for each thread from which on all rows stay with one thread: packing is done once then.
_ENOUGH_BLOCKS = 4
# Multiply-adds that are worth waking another thread for: some 60 microseconds of one core.
_WORTH_A_THREAD = 2_000_000


class Product(Protocol):
    """``product(x, bias)``: x [tokens, inputs] fp32, contiguous -> [tokens, outputs]."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product plus bias."""


class KernelProduct:
    """The kernel of kernel.py.

    Args:
        weight: [outputs, inputs] fp32 with zeros; copied.
        shape: how it uses registers; what suits this machine by default.

    Raises:
        MissingExtraError: llvmlite is not installed.
        TargetError: a side shorter than a register.
    """

    def __init__(self, weight: Tensor, shape: Shape | None = None) -> None:
        self.shape = shape or shape_for_host()
        self.outputs, self.inputs = weight.shape
        if min(weight.shape) < self.shape.lanes:
            raise TargetError(
                f"a weight of {list(weight.shape)} has a side shorter than a register "
                f"({self.shape.lanes}); leave the layer dense"
            )
        self.run = compiled(self.shape)
        self.offsets, self.values, self.starts = padded_rows(weight, self.shape)
        self.no_bias = torch.zeros(self.outputs)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product plus bias, by as many of torch's threads as the work is worth."""
        tokens = x.shape[0]
        work = tokens * len(self.values) // _WORTH_A_THREAD
        threads = max(1, min(torch.get_num_threads(), work))
        y = torch.empty(tokens, self.outputs)
        bias = self.no_bias if bias is None else bias
        panel_bytes = -(-self.inputs * self.shape.tokens * 4 // _PAGE) * _PAGE
        panel = torch.empty(panel_bytes * threads, dtype=torch.uint8)
        blocks = -(-tokens // self.shape.tokens)
        whole = blocks % threads == 0 or blocks >= _ENOUGH_BLOCKS * threads
        tensors = (x, self.offsets, self.values, self.starts, bias, y, panel)
        sizes = (tokens, self.inputs, self.outputs, panel_bytes, 1 if whole else threads)
        arguments = (ctypes.c_int64 * len(ARGUMENTS))(*(t.data_ptr() for t in tensors), *sizes)
        self.run(arguments, threads)
        return y


class CsrProduct:
    """torch's compressed sparse rows.

    Args:
        weight: [outputs, inputs] fp32 with zeros; copied.
    """

    def __init__(self, weight: Tensor) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            self.weight = weight.detach().to_sparse_csr()

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product plus bias."""
        product = self.weight @ x.t()
        return (product if bias is None else product.add_(bias[:, None])).t()


def padded_rows(weight: Tensor, shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """A weight as the kernel reads it.

    Args:
        weight: [outputs, inputs] fp32.
        shape: how the kernel is unrolled; each row is filled up with zeros to a multiple.

    Returns:
        Column numbers, int32, and values, fp32, of all rows one after the other, and where each
        row starts, int64 [outputs + 1].
    """
    weight = weight.detach()
    rows, columns = weight.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=weight.shape[0])
    padded = (counts + shape.unroll - 1) // shape.unroll * shape.unroll
    starts = torch.cat([padded.new_zeros(1), padded.cumsum(0)])
    inside = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
    places = starts[rows] + inside
    offsets = torch.zeros(int(starts[-1]), dtype=torch.int32)
    values = torch.zeros(int(starts[-1]))
    offsets[places] = columns.int()
    values[places] = weight[rows, columns]
    return offsets, values, starts
