"""Losses on logits, against numpy and scipy in float64 and against values worked out by hand."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor

from hfcompress.distillation.losses import (
    DistillationLoss,
    distillation_loss,
    kl_divergence,
    logits_mse,
    soft_loss,
)
from hfcompress.errors import ConfigError, ModelError
from hfcompress.training.hard_loss import Task, hard_loss

SHAPES: dict[Task, tuple[int, ...]] = {
    "classification": (6, 3), "multi_label": (6, 4), "regression": (6, 2),
    "tokens": (2, 5, 3), "spans": (3, 2, 7),
}  # fmt: skip
MASKS: dict[Task, Tensor] = {
    "classification": torch.tensor([1, 1, 0, 1, 0, 1]),
    "multi_label": torch.tensor([1, 1, 0, 1, 0, 1]),
    "regression": torch.tensor([1, 1, 0, 1, 0, 1]),
    "tokens": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]),
    "spans": torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 2 + [0] * 5]),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both(task: Task) -> tuple[Tensor, Tensor]:
    return random(*SHAPES[task]), random(*SHAPES[task], seed=1)


def reference_kl(student: Any, teacher: Any, temperature: float) -> Any:
    """One divergence for each distribution over the last axis."""
    p = special.softmax(np.asarray(teacher) / temperature, axis=-1)
    q = special.softmax(np.asarray(student) / temperature, axis=-1)
    return temperature**2 * special.rel_entr(p, q).sum(-1)


def reference(task: Task, temperature: float, mask: Tensor | None) -> float:
    """The soft loss by another path: rows picked one by one, scipy's relative entropy."""
    student, teacher = (tensor.numpy() for tensor in both(task))
    kept = np.ones(mask.shape if mask is not None else SHAPES[task], bool)
    if mask is not None:
        kept = mask.numpy().astype(bool)
    if task == "spans":
        parts = []
        for row in range(len(student)):
            chosen = kept[row] if mask is not None else np.ones(student.shape[-1], bool)
            parts += list(
                reference_kl(student[row][:, chosen], teacher[row][:, chosen], temperature)
            )
        return float(np.mean(parts))
    if mask is not None:
        student, teacher = student[kept], teacher[kept]
    if task == "regression":
        return float(np.mean((student - teacher) ** 2))
    if task == "multi_label":  # a label is a distribution over right and wrong: logits z and 0
        mine, theirs = (np.stack([part, np.zeros_like(part)], -1) for part in (student, teacher))
        return float(np.mean(reference_kl(mine, theirs, temperature)))
    return float(np.mean(reference_kl(student, teacher, temperature)))


@pytest.mark.parametrize("task", SHAPES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("masked", [False, True])
def test_soft_losses_are_their_formulas(task: Task, temperature: float, masked: bool) -> None:
    mask = MASKS[task] if masked else None
    found = soft_loss(*both(task), temperature, task, mask)
    assert found.item() == pytest.approx(reference(task, temperature, mask), rel=1e-12)


def test_a_divergence_worked_out_by_hand() -> None:
    # The student says 1/2, 1/2 and the teacher 3/4, 1/4; at T = 2 with twice the logits too.
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kl_divergence(student, teacher, 1.0).item() == pytest.approx(expected)
    assert kl_divergence(student, 2 * teacher, 2.0).item() == pytest.approx(4 * expected)
    # A label is right with 1/2 for the student and with 3/4 for the teacher: the same divergence.
    one = soft_loss(torch.zeros(1, 1), teacher[:, :1], 1.0, "multi_label")
    assert one.item() == pytest.approx(expected)
    loss = distillation_loss(student, teacher, torch.tensor([0]), 1.0, 0.25)
    assert loss.total.item() == pytest.approx(0.25 * expected + 0.75 * math.log(2))
    assert logits_mse(student, torch.tensor([[1.0, 3.0]])).item() == 5.0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_distillation_loss_is_the_formula(temperature: float, alpha: float) -> None:
    student, teacher = both("classification")
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    loss = distillation_loss(student, teacher, labels, temperature, alpha)
    soft = reference("classification", temperature, None)
    hard = -np.log(special.softmax(student.numpy(), axis=-1)[range(6), labels.numpy()]).mean()
    assert loss.soft.item() == pytest.approx(soft)
    assert loss.hard.item() == pytest.approx(hard)
    assert loss.total.item() == pytest.approx(alpha * soft + (1 - alpha) * hard)
    module = DistillationLoss(temperature=temperature, alpha=alpha)
    assert module(student, teacher, labels) == loss
    assert repr(temperature) in repr(module)


@pytest.mark.parametrize("task", SHAPES)
def test_losses_of_equal_logits_are_zero(task: Task) -> None:
    logits, _ = both(task)
    for mask in (None, MASKS[task]):
        assert abs(soft_loss(logits, logits, 2.0, task, mask).item()) < 1e-14
        assert logits_mse(logits, logits, task, mask) == 0


@pytest.mark.parametrize("task", SHAPES)
def test_gradients_reach_unmasked_student_logits_only(task: Task) -> None:
    mask = MASKS[task]
    losses: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda s, t: soft_loss(s, t, 2.0, task, mask),
        lambda s, t: logits_mse(s, t, task, mask),
    ]
    for loss in losses:
        student, teacher = (tensor.requires_grad_() for tensor in both(task))
        loss(student, teacher).backward()  # type: ignore[no-untyped-call]
        assert teacher.grad is None
        assert student.grad is not None
        counted = mask[:, None].expand(SHAPES[task]) if task == "spans" else mask
        while counted.dim() < student.dim():
            counted = counted[..., None].expand(SHAPES[task])
        assert student.grad[counted.bool()].abs().min() > 0
        assert student.grad[~counted.bool()].abs().max() == 0


@pytest.mark.parametrize("task", SHAPES)
def test_masked_logits_do_not_count(task: Task) -> None:
    student, teacher = both(task)
    mask = MASKS[task]
    before = soft_loss(student, teacher, 2.0, task, mask), logits_mse(student, teacher, task, mask)
    hidden = ~(mask[:, None].expand(SHAPES[task]) if task == "spans" else mask).bool()
    for tensor, junk in ((student, 1e3), (teacher, -torch.inf if task == "spans" else 7.0)):
        tensor[hidden] = junk
    assert soft_loss(student, teacher, 2.0, task, mask) == before[0]
    if task != "spans":
        assert logits_mse(student, teacher, task, mask) == before[1]


def test_all_masked_is_zero() -> None:
    for task, shape in SHAPES.items():
        mask = torch.zeros_like(MASKS[task])
        assert soft_loss(random(*shape), random(*shape, seed=1), 2.0, task, mask) == 0


def test_hard_losses_are_their_formulas() -> None:
    multi, right = random(4, 3), torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    chance = special.expit(multi.numpy())
    expected = -np.log(np.where(right.numpy(), chance, 1 - chance)).mean()
    assert hard_loss(multi, right, "multi_label").item() == pytest.approx(expected)
    values = random(4, 1)
    assert hard_loss(values, torch.ones(4), "regression").item() == pytest.approx(
        ((values.numpy() - 1) ** 2).mean()
    )
    spans, ends = random(2, 2, 5), torch.tensor([[0, 4], [7, 3]])  # 7 lies outside: no label
    chance = special.softmax(spans.numpy(), axis=-1)
    expected = -np.log([chance[0, 0, 0], chance[0, 1, 4], chance[1, 1, 3]]).mean()
    assert hard_loss(spans, ends, "spans").item() == pytest.approx(expected)


@pytest.mark.parametrize("task", SHAPES)
def test_the_module_weighs_soft_and_hard_for_every_task(task: Task) -> None:
    student, teacher = both(task)
    labels = {
        "classification": torch.arange(6) % 3, "multi_label": torch.ones(6, 4),
        "regression": torch.zeros(6, 2), "tokens": torch.ones(2, 5, dtype=torch.long),
        "spans": torch.tensor([[0, 1], [2, 3], [4, 5]]),
    }[task]  # fmt: skip
    module = DistillationLoss(3.0, alpha=0.2, task=task)
    terms = module(student, teacher, labels, MASKS[task])
    assert terms.soft == soft_loss(student, teacher, 3.0, task, MASKS[task])
    assert terms.hard == hard_loss(student, labels, task)
    assert terms.total == 0.2 * terms.soft + 0.8 * terms.hard
    module.temperature, module.alpha = 1.0, 1.0
    changed = module(student, teacher, labels, MASKS[task])
    assert changed.total == changed.soft
    assert (changed.soft == terms.soft) == (task == "regression")


def test_T_is_an_alias_of_temperature() -> None:
    logits = both("classification")
    by_alias = distillation_loss(*logits, T=3.0)
    assert by_alias == distillation_loss(*logits, temperature=3.0)
    assert by_alias != distillation_loss(*logits) == distillation_loss(*logits, temperature=2.0)
    module = DistillationLoss(T=3.0)
    assert module(*logits) == by_alias
    module.T = 2.0
    assert module.temperature == module.T == 2.0
    assert module(*logits) == distillation_loss(*logits)
    with pytest.raises(ConfigError, match=r"temperature=2.0 and T=3.0 are the same option"):
        distillation_loss(*logits, temperature=2.0, T=3.0)
    with pytest.raises(ConfigError, match="give temperature only"):
        DistillationLoss(2.0, T=3.0)


def test_without_labels_the_soft_part_counts_in_full() -> None:
    loss = distillation_loss(*both("classification"), None, 2.0, alpha=0.1)
    assert loss.total == loss.soft
    assert loss.hard == 0


def test_unlabelled_examples_do_not_count_in_the_hard_part() -> None:
    student, teacher = random(4, 3), random(4, 3, seed=1)
    some = distillation_loss(student, teacher, torch.tensor([1, -100, 2, -100]))
    labelled = distillation_loss(student[[0, 2]], teacher[[0, 2]], torch.tensor([1, 2]))
    torch.testing.assert_close(some.hard, labelled.hard)
    none = distillation_loss(student, teacher, torch.full((4,), -100), alpha=0.5)
    assert none.hard == 0
    torch.testing.assert_close(none.total, 0.5 * none.soft)


def test_the_temperature_keeps_the_size_of_the_gradient() -> None:
    sizes = []
    for temperature in (1e2, 1e3):
        student = random(4, 3).requires_grad_()
        kl_divergence(student, random(4, 3, seed=1), temperature).backward()  # type: ignore[no-untyped-call]
        assert student.grad is not None
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


@pytest.mark.parametrize(
    ("temperature", "alpha", "message"),
    [(0.0, 0.5, "temperature must be above 0, not 0.0"), (-1.0, 0.5, "temperature must be above"),
     (float("nan"), 0.5, "temperature must"), (1.0, 1.5, "alpha must lie between 0 and 1, not 1.5"),
     (1.0, -0.1, "alpha must")],
)  # fmt: skip
def test_refuses_temperature_and_alpha_out_of_range(
    temperature: float, alpha: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        distillation_loss(random(2, 3), random(2, 3), None, temperature, alpha)


def test_refuses_different_shapes_and_unknown_tasks() -> None:
    with pytest.raises(ModelError, match=r"student \(2, 3\) and teacher \(2, 4\) differ"):
        distillation_loss(random(2, 3), random(2, 4))
    with pytest.raises(ConfigError, match="task must be one of classification, multi_label"):
        DistillationLoss(task="tagging")  # type: ignore[arg-type]
