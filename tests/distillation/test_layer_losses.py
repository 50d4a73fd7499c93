"""Losses on layers, against numpy and scipy in float64 and against values worked out by hand."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import special
from scipy.spatial import distance as distances
from torch import Tensor, nn

from hfcompress.distillation.layer_losses import (
    HiddenDistance,
    attention_loss,
    hidden_state_loss,
    value_relation_loss,
)
from hfcompress.errors import ConfigError, ModelError

DISTANCES: tuple[HiddenDistance, ...] = get_args(HiddenDistance)
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
KEPT = MASK.numpy().astype(bool)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps(heads: int, seed: int = 0) -> Tensor:
    return random(2, heads, 4, 4, seed=seed).softmax(-1)


def test_every_loss_is_zero_where_student_and_teacher_agree() -> None:
    hidden = random(2, 4, 8)
    for distance in DISTANCES:
        assert abs(hidden_state_loss(hidden, hidden, MASK, distance=distance).item()) < 1e-12
    assert attention_loss(maps(2), maps(2), MASK) == 0
    assert abs(value_relation_loss(hidden, hidden, 2, MASK).item()) < 1e-12


def test_hidden_distances_are_their_formulas() -> None:
    student, teacher = random(2, 4, 8), random(2, 4, 8, seed=1)
    mine, theirs = student.numpy()[KEPT], teacher.numpy()[KEPT]
    mse = np.mean((mine - theirs) ** 2)
    energies = [(states.numpy() ** 2).sum(-1) * KEPT for states in (student, teacher)]
    of_unit = [energy / np.linalg.norm(energy, axis=1, keepdims=True) for energy in energies]
    first = zip(student.numpy()[:, 0], teacher.numpy()[:, 0], strict=True)
    # Unit vectors are 2 - 2 cos apart, squared.
    expected = {
        "mse": mse,
        "normalized_mse": mse / np.mean(theirs**2),
        "cosine": np.mean([distances.cosine(a, b) for a, b in zip(mine, theirs, strict=True)]),
        "patience": np.mean([2 * distances.cosine(a, b) for a, b in first]),
        "attention_transfer": np.mean(((of_unit[0] - of_unit[1]) ** 2).sum(1)),
    }
    assert set(expected) == set(DISTANCES)
    for name, value in expected.items():
        found = hidden_state_loss(student, teacher, MASK, distance=name)  # type: ignore[arg-type]
        assert found.item() == pytest.approx(value, rel=1e-12)


def test_distances_worked_out_by_hand() -> None:
    student, teacher = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 3.0]]])
    expected = {"mse": 1.0, "normalized_mse": 1 / 12.5, "cosine": 1 - 24 / 25, "patience": 2 / 25}
    for name, value in expected.items():
        found = hidden_state_loss(student, teacher, distance=name)  # type: ignore[arg-type]
        assert found.item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
def test_padding_does_not_count(distance: HiddenDistance) -> None:
    student, teacher = random(2, 4, 8), random(2, 4, 8, seed=1)
    before = hidden_state_loss(student, teacher, MASK, distance=distance)
    student[~MASK.bool()], teacher[~MASK.bool()] = 1e3, -7.0
    assert hidden_state_loss(student, teacher, MASK, distance=distance) == before


@pytest.mark.parametrize(("mine", "theirs"), [(2, 2), (2, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_maps_are_compared_row_by_row(mine: int, theirs: int, masked: bool) -> None:
    student, teacher = maps(mine), maps(theirs, seed=1)
    a, b = student.numpy(), teacher.numpy()
    if mine != theirs:
        a, b = a.mean(1, keepdims=True), b.mean(1, keepdims=True)
    rows = [
        distances.sqeuclidean(a[s, h, q, : n or 4], b[s, h, q, : n or 4])
        for s in range(2)
        for n in [int(KEPT[s].sum()) if masked else 0]
        for h in range(a.shape[1])
        for q in range(n or 4)
    ]
    found = attention_loss(student, teacher, MASK if masked else None)
    assert found.item() == pytest.approx(np.mean(rows), rel=1e-12)


def test_maps_that_look_elsewhere_are_two_apart() -> None:
    student, teacher = torch.eye(2)[None, None], torch.eye(2).flip(0)[None, None]
    assert attention_loss(student, teacher) == 2.0


@pytest.mark.parametrize("masked", [False, True])
def test_value_relations_are_the_formula(masked: bool) -> None:
    student, teacher = random(2, 4, 6), random(2, 4, 8, seed=1)
    parts = []
    for sentence in range(2):
        kept = KEPT[sentence] if masked else np.ones(4, bool)
        relations = []
        for values in (student, teacher):
            heads = np.split(values.numpy()[sentence][kept], 2, axis=-1)
            relations.append(
                [special.softmax(v @ v.T / math.sqrt(v.shape[1]), axis=-1) for v in heads]
            )
        for q, p in zip(*relations, strict=True):
            parts += list(special.rel_entr(p, q).sum(-1))
    found = value_relation_loss(student, teacher, 2, MASK if masked else None)
    assert found.item() == pytest.approx(np.mean(parts), rel=1e-12)


def test_a_value_relation_worked_out_by_hand() -> None:
    # Two tokens, one head of width 1. Values 0 relate evenly; with 1 and 0 the first token relates
    # to itself e times as much as to the other, and the second evenly.
    student, teacher = torch.zeros(1, 2, 1), torch.tensor([[[1.0], [0.0]]])
    p = math.e / (1 + math.e)
    expected = (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))) / 2
    assert value_relation_loss(student, teacher, 1).item() == pytest.approx(expected, rel=1e-5)


def test_gradients_reach_the_student_and_not_the_teacher() -> None:
    for distance in DISTANCES:
        student, teacher = (random(2, 4, 8, seed=s).requires_grad_() for s in (0, 1))
        hidden_state_loss(student, teacher, MASK, distance=distance).backward()  # type: ignore[no-untyped-call]
        assert student.grad is not None
        assert student.grad[:, 0].abs().min() > 0
        assert student.grad[~MASK.bool()].abs().max() == 0
        assert teacher.grad is None
    for student, teacher, loss in (
        (maps(2), maps(2, 1), lambda s, t: attention_loss(s, t, MASK)),
        (random(2, 4, 8), random(2, 4, 8, seed=1), lambda s, t: value_relation_loss(s, t, 2, MASK)),
    ):
        student.requires_grad_(), teacher.requires_grad_()
        loss(student, teacher).backward()  # type: ignore[no-untyped-call]
        assert student.grad is not None
        assert student.grad.abs().sum() > 0
        assert student.grad.isfinite().all()
        assert teacher.grad is None


def test_a_projection_bridges_widths_and_learns() -> None:
    student, teacher = random(2, 4, 6), random(2, 4, 8, seed=1)
    projection = nn.Linear(6, 8).double()
    hidden_state_loss(student, teacher, projection=projection).backward()  # type: ignore[no-untyped-call]
    assert projection.weight.grad is not None
    with pytest.raises(ModelError, match="give a projection"):
        hidden_state_loss(student, teacher)


def test_a_batch_of_padding_has_no_distance() -> None:
    student = random(2, 4, 8).requires_grad_()
    loss = hidden_state_loss(student, random(2, 4, 8, seed=1), torch.zeros(2, 4))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0
    nothing = torch.zeros(2, 4)
    assert attention_loss(maps(2), maps(2, 1), nothing) == 0
    assert value_relation_loss(student, random(2, 4, 8, seed=1), 2, nothing) == 0


def test_refuses_an_unknown_distance_and_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="normalized_mse"):
        hidden_state_loss(random(1, 2, 3), random(1, 2, 3), distance="l1")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="cannot split width 8 into 3 relation heads"):
        value_relation_loss(random(1, 2, 6), random(1, 2, 8), 3)
