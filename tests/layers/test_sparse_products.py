"""Sparse products against a float64 reference, for every shape and way of using registers."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from hfcompress.errors import MissingExtraError, TargetError
from hfcompress.layers import sparse_kernel as compiling
from hfcompress.layers.sparse_kernel import Shape
from hfcompress.layers.sparse_products import CsrProduct, KernelProduct, padded_rows

pytest.importorskip("llvmlite", reason="the extra sparse")
SHAPES = [Shape(16, 2, 4), Shape(8, 2, 4), Shape(4, 2, 4), Shape(8, 1, 2, unroll=2)]


def sparse(outputs: int, inputs: int, density: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    return weight * (torch.rand(outputs, inputs, generator=generator) < density)


def close(found: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    expected = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    return torch.allclose(found.double(), expected, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 32, 33, 150])
@pytest.mark.parametrize("sides", [(16, 16), (17, 40), (64, 33)])
def test_the_kernel_is_a_matrix_product(shape: Shape, tokens: int, sides: tuple[int, int]) -> None:
    weight = sparse(*sides, density=0.3, seed=tokens)
    x, bias = torch.randn(tokens, sides[1]), torch.randn(sides[0])
    product = KernelProduct(weight, shape)
    assert close(product(x, bias), x, weight, bias)
    assert close(product(x, None), x, weight, None)


@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
def test_empty_rows_and_full_ones(density: float) -> None:
    weight = sparse(48, 32, density)
    x, bias = torch.randn(40, 32), torch.randn(48)
    assert close(KernelProduct(weight)(x, bias), x, weight, bias)
    assert close(CsrProduct(weight)(x, bias), x, weight, bias)
    assert close(CsrProduct(weight)(x, None), x, weight, None)


@pytest.mark.parametrize("tokens", [5, 32, 70, 96, 300, 1000])
def test_several_threads_share_the_work(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = sparse(40, 32, 0.2)
    x, bias = torch.randn(tokens, 32), torch.randn(40)
    monkeypatch.setattr("hfcompress.layers.sparse_products._WORTH_A_THREAD", 1)
    product, before = KernelProduct(weight), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = product(x, bias)
        torch.set_num_threads(3)
        together = product(x, bias)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, together)
    assert close(alone, x, weight, bias)


def test_little_work_wakes_no_other_thread() -> None:
    product, asked = KernelProduct(sparse(32, 32, 0.2)), []
    product.run = lambda arguments, threads: asked.append(threads)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        product(torch.randn(32, 32), None)
        product(torch.randn(100_000, 32), None)
    finally:
        torch.set_num_threads(before)
    assert asked == [1, 2]


def test_without_openmp_one_thread_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_openmp", lambda: None)
    monkeypatch.setattr(compiling, "compiled", compiling.compiled.__wrapped__)
    weight, x = sparse(32, 32, 0.2), torch.randn(50, 32)
    product = KernelProduct(weight)
    product.run = compiling.compiled(product.shape)
    assert close(product(x, None), x, weight, None)


def test_rows_are_filled_up_with_zeros() -> None:
    weight = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    columns, values, starts = padded_rows(weight, Shape(4, 1, 1, unroll=2))
    assert starts.tolist() == [0, 2, 2, 6]
    assert columns.tolist() == [1, 0, 0, 1, 2, 0]
    assert values.tolist() == [5, 0, 1, 2, 3, 0]


def test_a_side_shorter_than_a_register_is_refused() -> None:
    with pytest.raises(TargetError, match=r"\[3, 32\] has a side shorter than a register \(16\)"):
        KernelProduct(torch.ones(3, 32), Shape(16, 2, 4))


def test_without_llvmlite_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    monkeypatch.setitem(sys.modules, "llvmlite.ir", None)
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    compiling.shape_for_host.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'hfcompress\[sparse\]'"):
        KernelProduct(torch.ones(32, 32))
