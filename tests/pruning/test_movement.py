import pytest
import torch
from torch.nn import functional as F

from hfcompress.pruning.scores import movement_update_, soft_movement_mask, soft_movement_update_


def test_movement_is_the_straight_through_gradient_of_the_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    inputs = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 7, generator=generator) > 0.4
    # An independent graph: the mask as a differentiable stand-in for the scores.
    stand_in = mask.double().requires_grad_()
    F.linear(inputs, weight * stand_in).square().sum().backward()  # type: ignore[no-untyped-call]
    masked = (weight * mask).requires_grad_()
    F.linear(inputs, masked).square().sum().backward()  # type: ignore[no-untyped-call]
    assert masked.grad is not None
    assert stand_in.grad is not None
    scores = torch.zeros(5, 7, dtype=torch.float64)
    movement_update_(scores, weight, masked.grad)
    torch.testing.assert_close(scores, -stand_in.grad)


def test_movement_accumulates() -> None:
    scores, weight, gradient = torch.zeros(2), torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    for _ in range(2):
        movement_update_(scores, weight, gradient)
    assert scores.tolist() == [-6.0, 16.0]


def test_soft_movement_pulls_down_and_does_not_depend_on_the_gradient_scale() -> None:
    weight, gradient = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, 4.0, -1.0])
    results = []
    for scale in (1.0, 1e-6):
        scores = torch.zeros(3)
        soft_movement_update_(scores, weight, scale * gradient, learning_rate=0.1, pull=0.0)
        results.append(scores)
    torch.testing.assert_close(*results)
    step = weight * gradient
    torch.testing.assert_close(results[0], -0.1 * step / step.square().mean().sqrt())
    pulled = torch.zeros(3)
    soft_movement_update_(pulled, weight, torch.zeros(3), learning_rate=0.1, pull=2.0)
    torch.testing.assert_close(pulled, torch.full((3,), -0.1 * 2.0 * 0.25))


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.4])
def test_soft_mask_compares_the_sigmoid(threshold: float) -> None:
    scores = torch.linspace(-5, 5, 101, dtype=torch.float64)
    expected = torch.sigmoid(scores) > threshold
    assert torch.equal(soft_movement_mask(scores, threshold), expected)
