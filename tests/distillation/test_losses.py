import pytest
import torch
from torch import Tensor, nn

from hfcompress.distillation.losses import (
    HiddenDistance,
    distillation_loss,
    hidden_state_loss,
    kl_divergence,
    logits_mse,
)

DISTANCES: tuple[HiddenDistance, ...] = ("mse", "normalized_mse", "cosine")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p = torch.exp(teacher / temperature) / torch.exp(teacher / temperature).sum(-1, keepdim=True)
    q = torch.exp(student / temperature) / torch.exp(student / temperature).sum(-1, keepdim=True)
    return temperature**2 * (p * (p / q).log()).sum(-1).mean()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_distillation_loss_is_the_formula(temperature: float, alpha: float) -> None:
    student, teacher = random(6, 3), random(6, 3, seed=1)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    loss = distillation_loss(student, teacher, labels, temperature, alpha)
    soft = reference_kl(student, teacher, temperature)
    hard = -student.log_softmax(-1)[range(6), labels].mean()
    torch.testing.assert_close(loss.soft, soft)
    torch.testing.assert_close(loss.hard, hard)
    torch.testing.assert_close(loss.total, alpha * soft + (1 - alpha) * hard)


def test_every_loss_is_zero_where_student_and_teacher_agree() -> None:
    logits, hidden = random(4, 3), random(4, 5, 8)
    assert abs(distillation_loss(logits, logits).total.item()) < 1e-15
    assert logits_mse(logits, logits) == 0
    for distance in DISTANCES:
        assert abs(hidden_state_loss(hidden, hidden, distance=distance).item()) < 1e-12


def test_without_labels_the_soft_part_counts_in_full() -> None:
    student, teacher = random(4, 3), random(4, 3, seed=1)
    loss = distillation_loss(student, teacher, None, 2.0, alpha=0.1)
    assert loss.total == loss.soft
    assert loss.hard == 0


def test_unlabelled_examples_leave_the_hard_part_alone() -> None:
    student, teacher = random(4, 3), random(4, 3, seed=1)
    some = distillation_loss(student, teacher, torch.tensor([1, -100, 2, -100]))
    labelled = distillation_loss(student[[0, 2]], teacher[[0, 2]], torch.tensor([1, 2]))
    torch.testing.assert_close(some.hard, labelled.hard)
    none = distillation_loss(student, teacher, torch.full((4,), -100), alpha=0.5)
    assert none.hard == 0
    torch.testing.assert_close(none.total, 0.5 * none.soft)


def test_token_logits_are_a_mean_over_tokens() -> None:
    student, teacher = random(2, 5, 3), random(2, 5, 3, seed=1)
    flat = kl_divergence(student.reshape(10, 3), teacher.reshape(10, 3), 2.0)
    torch.testing.assert_close(kl_divergence(student, teacher, 2.0), flat)


def test_the_temperature_keeps_the_size_of_the_gradient() -> None:
    sizes = []
    for temperature in (1e2, 1e3):
        student = random(4, 3).requires_grad_()
        kl_divergence(student, random(4, 3, seed=1), temperature).backward()  # type: ignore[no-untyped-call]
        assert student.grad is not None
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_gradients_reach_the_student_and_not_the_teacher() -> None:
    student, teacher = random(4, 3).requires_grad_(), random(4, 3, seed=1).requires_grad_()
    labels = torch.tensor([0, 1, 2, 0])
    total = distillation_loss(student, teacher, labels).total + logits_mse(student, teacher)
    total = total + hidden_state_loss(student[None], teacher[None])
    total.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("distance", DISTANCES)
def test_padding_does_not_count(distance: HiddenDistance) -> None:
    student, teacher = random(2, 4, 8), random(2, 4, 8, seed=1)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    loss = hidden_state_loss(student, teacher, mask, distance=distance)
    kept = torch.cat([student[0, :3], student[1, :2]])[None]
    kept_teacher = torch.cat([teacher[0, :3], teacher[1, :2]])[None]
    torch.testing.assert_close(loss, hidden_state_loss(kept, kept_teacher, distance=distance))
    student[mask == 0] = 1e3
    torch.testing.assert_close(loss, hidden_state_loss(student, teacher, mask, distance=distance))


def test_hidden_distances_are_their_formulas() -> None:
    student, teacher = random(2, 4, 8), random(2, 4, 8, seed=1)
    mse = (student - teacher).pow(2).mean()
    cosine = (student * teacher).sum(-1) / (student.norm(dim=-1) * teacher.norm(dim=-1))
    torch.testing.assert_close(hidden_state_loss(student, teacher), mse)
    torch.testing.assert_close(
        hidden_state_loss(student, teacher, distance="normalized_mse"), mse / teacher.pow(2).mean()
    )
    torch.testing.assert_close(
        hidden_state_loss(student, teacher, distance="cosine"), (1 - cosine).mean()
    )


def test_a_projection_bridges_widths_and_learns() -> None:
    student, teacher = random(2, 4, 6), random(2, 4, 8, seed=1)
    projection = nn.Linear(6, 8).double()
    hidden_state_loss(student, teacher, projection=projection).backward()  # type: ignore[no-untyped-call]
    assert projection.weight.grad is not None
    with pytest.raises(ValueError, match="differ in shape"):
        hidden_state_loss(student, teacher)


def test_a_batch_of_padding_has_no_distance() -> None:
    student = random(2, 4, 8).requires_grad_()
    loss = hidden_state_loss(student, random(2, 4, 8, seed=1), torch.zeros(2, 4))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0


@pytest.mark.parametrize(("temperature", "alpha"), [(0.0, 0.5), (-1.0, 0.5), (1.0, 1.5)])
def test_values_out_of_range_are_refused(temperature: float, alpha: float) -> None:
    with pytest.raises(ValueError, match="must"):
        distillation_loss(random(2, 3), random(2, 3), None, temperature, alpha)


def test_an_unknown_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="normalized_mse"):
        hidden_state_loss(random(1, 2, 3), random(1, 2, 3), distance="l1")  # type: ignore[arg-type]
