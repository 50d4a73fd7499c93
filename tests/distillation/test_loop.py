"""``distill`` of any modules on any loader."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hfcompress.distillation.loop import distill
from hfcompress.errors import ConfigError, DataError, HfcompressError, ModelError, TargetError
from tests.plain_networks import NETWORKS, CourseStudent, CourseTeacher


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def distance(student: nn.Module, teacher: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        mine, theirs = student.eval()(x), teacher.eval()(x)
    return float((mine.softmax(-1) - theirs.softmax(-1)).abs().mean())


def test_one_step_is_that_of_the_formula() -> None:
    network = NETWORKS["mlp"]
    x, y = network.rows(16)
    teacher, student, other = network.make(), nn.Linear(12, 3), nn.Linear(12, 3)
    other.load_state_dict(student.state_dict())
    teacher.eval()
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    report = distill(teacher, student, [(x, y)], temperature=3, alpha=0.7, optimizer=optimizer)
    logits = other(x)
    with torch.no_grad():
        theirs = (teacher(x) / 3).softmax(-1)
    soft = 9 * F.kl_div((logits / 3).log_softmax(-1), theirs, reduction="batchmean")
    loss = 0.7 * soft + 0.3 * F.cross_entropy(logits, y)
    torch.autograd.backward(loss)
    assert list(report.losses) == pytest.approx([loss.item()], rel=1e-5)
    with torch.no_grad():
        for mine, weight in zip(student.parameters(), other.parameters(), strict=True):
            assert weight.grad is not None
            torch.testing.assert_close(mine, weight - 0.1 * weight.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["loader", "generator"])
def test_a_student_comes_closer_and_the_teacher_stays(kind: str) -> None:
    network = NETWORKS["mlp"]
    teacher, (x, _) = network.make().train(), network.rows(64)
    torch.manual_seed(1)
    student = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
    before, far = state(teacher), distance(student, teacher.eval(), x)
    teacher.train()
    loader: Any = [(x,)] if kind == "loader" else ((part,) for part in torch.split(x, 16))
    report = distill(teacher, student, loader, epochs=60, alpha=1.0, learning_rate=1e-2)
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert distance(student, teacher, x) < 0.5 * far
    assert report.steps == 60 * (1 if kind == "loader" else 4)


def test_feature_maps_by_the_names_of_modules() -> None:
    torch.manual_seed(0)
    teacher, student = CourseTeacher().eval(), CourseStudent()
    loader = NETWORKS["course student"].loader(8, 4)
    kept: dict[str, list[float]] = {}
    for weight in (0.0, 10.0):
        copy = CourseStudent()
        copy.load_state_dict(student.state_dict())
        names = list(copy.state_dict())
        pairs = {"conv2": "conv3", "fc1": "fc1"}
        found = distill(
            teacher, copy, loader, epochs=3, features=pairs, features_weight=weight,
            learning_rate=3e-3,
        )  # fmt: skip
        assert list(copy.state_dict()) == names
        assert not copy.conv2._forward_hooks
        kept[str(weight)] = list(found.losses)
    assert kept["10.0"][0] > kept["0.0"][0]
    assert kept["10.0"][-1] < kept["10.0"][0]


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_kind_learns_from_its_like(kind: str) -> None:
    network = NETWORKS[kind]
    teacher, student = network.model(), network.model()
    for parameter in student.parameters():
        parameter.data = parameter.data * 0.9
    before = state(student)
    report = distill(teacher, student, network.loader(4, 4), temperature=2)
    assert report.steps == 1
    assert not student.training
    assert any(not torch.equal(value, before[n]) for n, value in student.state_dict().items())


def refusals() -> list[tuple[dict[str, Any], type[HfcompressError], str]]:
    x, y = NETWORKS["mlp"].rows(8)
    return [
        ({"loader": []}, DataError, "the loader has no batches"),
        ({"loader": [x]}, DataError, "or set alpha to 1 to learn from the teacher alone"),
        ({"loader": [(x, y + 5)]}, DataError, "the model has 3 classes"),
        ({"teacher": nn.Linear(12, 4)}, ModelError, r"shapes \[8, 3\] and \[8, 4\]"),
        ({"features": {"fist": "first"}}, TargetError, r"no module 'fist'.* 'first'"),
        ({"features": {"first": "lost"}}, TargetError, "the teacher has no module 'lost'"),
        ({"alpha": 1.5}, ConfigError, "alpha must lie between 0 and 1"),
        ({"temperature": 0.0}, ConfigError, "temperature must be above 0"),
        ({"epochs": 0}, ConfigError, "epochs is 0; give 1 or more"),
    ]


@pytest.mark.parametrize(("given", "kind", "says"), refusals())
def test_refuses_in_a_sentence_and_leaves_the_student(
    given: dict[str, Any], kind: type[HfcompressError], says: str
) -> None:
    network = NETWORKS["mlp"]
    student = network.model()
    before = state(student)
    arguments = {"teacher": network.model(), "student": student, "loader": [network.rows(8)]}
    with pytest.raises(kind, match=says):
        distill(**{**arguments, **given})
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
