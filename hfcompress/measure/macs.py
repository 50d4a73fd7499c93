"""Multiply-accumulates of one forward pass: linear layers, convolutions and attention products."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.backends import mkldnn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hfcompress.errors import ModelError, first_line
from hfcompress.measure.layers import evaluation_mode, frozen


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates (MACs) of one forward pass.

    ``modules`` holds every module that does any, by name; a module's figure includes its
    children's, and the model itself is not among them.
    """

    total: int
    modules: dict[str, int]


def count_macs(model: nn.Module, inputs: Mapping[str, Any]) -> Macs:
    """Count the multiply-accumulates of ``model(**inputs)``, for the whole batch.

    Counted are matrix products (Linear, Conv1D, LSTM, both products of attention) and convolutions,
    grouped ones by their real size; element-wise work, norms, softmax and embedding look-ups are
    not. Zeros count as much as other weights: a dense kernel multiplies them. Padding counts too.

    Args:
        model: any module; it is run once in eval mode and left as it was.
        inputs: keyword arguments of its forward, such as ``input_ids`` of batch x tokens.

    Raises:
        ModelError: the model cannot be run on these inputs.
    """
    # The fused attention kernels differ by device and some are not counted; "math" is the same
    # two matrix products everywhere. oneDNN's fused LSTM is not counted either, its products are.
    counter = FlopCounterMode(display=False)
    try:
        with (
            evaluation_mode(model),
            frozen(model),
            sdpa_kernel(SDPBackend.MATH),
            _without_onednn(),
            counter,
        ):
            model(**inputs)
    except Exception as error:  # whatever a forward raises is about these inputs
        line = first_line(error)
        raise ModelError(
            f"{type(model).__name__} cannot be run on the inputs {sorted(inputs)} to count MACs: "
            f"{line}"
        ) from error
    prefix = f"{type(model).__name__}."
    flops: dict[str, int] = {
        str(name): sum(by_operator.values())
        for name, by_operator in counter.get_flop_counts().items()
    }
    modules = {
        name.removeprefix(prefix): count // 2  # a multiply and an add are two operations
        for name, count in flops.items()
        if name.startswith(prefix) and count
    }
    return Macs(counter.get_total_flops() // 2, modules)


@contextmanager
def _without_onednn() -> Iterator[None]:
    # mkldnn.flags does this too, and touches a switch of Intel's GPUs, which warns without one.
    enabled, *_ = mkldnn.set_flags(_enabled=False, _fp32_precision=None)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        mkldnn.set_flags(_enabled=enabled, _fp32_precision=None)  # type: ignore[no-untyped-call]
