"""Hidden states of images: maps and tokens on one grid, and students of the other kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor

from hfcompress.distillation.cache import TeacherCache
from hfcompress.distillation.config import DistillationLossConfig
from hfcompress.distillation.layer_loss import LayerLoss
from hfcompress.distillation.layer_losses import as_map, hidden_state_loss, on_one_grid
from hfcompress.distillation.teacher_loss import TeacherLoss
from hfcompress.distillation.teacher_outputs import LayerStates
from hfcompress.errors import ModelError
from hfcompress.models.architectures import blocks
from tests.distillation.training import distill, logged
from tests.tiny_images import image_batches, image_model, image_rows


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("special", [0, 1, 2])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (14, 14), (7, 7), (2, 6)])
def test_patches_are_rows_of_a_grid_after_class_tokens(
    special: int, height: int, width: int
) -> None:
    tokens = random(2, special + height * width, 5)
    found = as_map(tokens, height / width)
    assert found.shape == (2, 5, height, width)
    for row, column in ((0, 0), (1, 0), (height - 1, width - 1)):
        expected = tokens[:, special + row * width + column]
        assert torch.equal(found[:, :, row, column], expected)


def test_tokens_that_are_no_grid() -> None:
    with pytest.raises(
        ModelError, match="cannot reshape 14 tokens into a patch grid of height : width = 1"
    ):
        as_map(random(2, 14, 5))


def test_the_finer_map_is_averaged_over_the_cells_of_the_coarser() -> None:
    tokens, fine = random(2, 17, 6), random(2, 3, 8, 8, seed=1)
    mine, theirs = on_one_grid(fine, tokens)
    cells = fine.numpy().reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    np.testing.assert_allclose(
        mine.numpy(), cells.reshape(2, 3, 16).transpose(0, 2, 1), rtol=1e-12, atol=1e-14
    )
    assert torch.equal(theirs, tokens[:, 1:])
    other = on_one_grid(tokens, fine)
    assert torch.equal(other[0], theirs)
    assert torch.equal(other[1], mine)


def test_attention_transfer_compares_where_not_what() -> None:
    states = random(2, 4, 8)
    assert hidden_state_loss(states, random(2, 4, 5), distance="attention_transfer").item() > 0.01
    turned = torch.linalg.qr(random(8, 8))[0]
    same = hidden_state_loss(states, -3 * states @ turned, distance="attention_transfer")
    assert abs(same.item()) < 1e-12


def loss_of(student: Tensor, teacher: Tensor, distance: str = "mse") -> Tensor:
    config = DistillationLossConfig(soft_weight=0, hidden_weight=1.0, hidden_distance=distance)  # type: ignore[arg-type]
    layers = LayerLoss(config, {0: 0})
    states = [LayerStates(hidden_states={0: state}) for state in (student, teacher)]
    layers.add_projections(*states)
    layers.double()
    found: torch.Tensor = layers(*states, images=True)["hidden_loss"]
    return found


@pytest.mark.parametrize("distance", ["mse", "normalized_mse", "cosine", "attention_transfer"])
def test_equal_maps_are_no_distance_apart_and_others_have_a_gradient(distance: str) -> None:
    state = random(2, 3, 4, 4).requires_grad_()
    assert abs(loss_of(state, state.detach(), distance).item()) < 1e-12
    tokens = random(2, 17, 3, seed=1)
    for pair in ((state, tokens), (state, random(2, 5, 8, 8)), (tokens.requires_grad_(), state)):
        loss = loss_of(*pair, distance)
        (gradient,) = torch.autograd.grad(loss, pair[0])
        assert loss.item() > 0
        assert gradient.abs().sum() > 0


def test_maps_have_no_first_token() -> None:
    with pytest.raises(ModelError, match="patience compares the first token, and a feature map"):
        loss_of(random(2, 3, 4, 4).requires_grad_(), random(2, 17, 3), "patience")


PAIRS = [("resnet", "vit"), ("vit", "resnet"), ("mobilenet_v2", "deit"), ("convnext", "swin")]


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_students_learn_the_states_of_a_teacher_of_another_family(
    student: str, teacher: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"hidden_weight": 1.0, "max_steps": 8, "learning_rate": 2e-2}
    small: dict[str, Any] = {"depth_multiplier": 0.1} if student == "mobilenet_v2" else {}
    made = distill(
        tmp_path, image_model(student, **small), image_model(teacher, seed=1), image_rows(),
        remove_unused_columns=False, per_device_train_batch_size=12, **given,
    )  # fmt: skip
    losses = logged(made, "hidden_loss")
    assert losses[-1] < 0.95 * losses[0]
    projections: Any = made.teaching.layers[0].projections
    student_model: Any = made.model
    assert len(projections) == len(blocks(student_model))
    assert all(p.grad is None or p.grad.isfinite().all() for p in projections.parameters())


def test_transformers_of_other_patches_are_compared_on_one_grid() -> None:
    student, teacher = image_model("vit"), image_model("vit", seed=1, patch_size=4)
    config = DistillationLossConfig(soft_weight=0, hidden_weight=1.0, hidden_distance="mse")
    (batch, *_) = image_batches()
    with TeacherLoss(student, teacher, config) as terms:
        outputs = student(batch["pixel_values"])
        found = terms(student, batch, outputs)["hidden_loss"].item()
    states = [
        model(batch["pixel_values"], output_hidden_states=True).hidden_states[1:]
        for model in (student, teacher)
    ]
    expected = 0.0
    for mine, theirs in zip(*states, strict=True):
        cells = theirs[:, 1:].reshape(6, 4, 2, 4, 2, 32).mean((2, 4)).flatten(1, 2)
        expected += (mine[:, 1:] - cells).double().square().mean().item()
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_a_cache_keeps_the_states_of_images_whole(family: str, tmp_path: Path) -> None:
    teacher = image_model(family, seed=1)
    rows = Dataset.from_list(image_rows(10)).with_format("torch")

    def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}

    cache = TeacherCache.build(
        teacher, rows, collate, hidden_layers=(0, 1), batch_size=4, folder=tmp_path
    )
    chosen = torch.tensor([7, 0, 3])
    found = cache.lookup(chosen)
    config = DistillationLossConfig(soft_weight=0, hidden_weight=1.0)
    pixels = torch.stack([rows[int(index)]["pixel_values"] for index in chosen])
    with TeacherLoss(image_model(family), teacher, config) as terms:
        live = terms._pairs[0].teacher.ask({"pixel_values": pixels})
    torch.testing.assert_close(found.logits, live.logits, rtol=1e-5, atol=1e-5)
    for layer, state in live.hidden_states.items():
        torch.testing.assert_close(found.hidden_states[layer], state, rtol=2e-3, atol=2e-3)


def test_maps_of_a_family_without_attention_are_refused_where_attention_is_asked() -> None:
    config = DistillationLossConfig(attention_weight=1.0)
    with pytest.raises(Exception, match="where ResNetForImageClassification keeps its attention"):
        TeacherLoss(image_model("resnet"), image_model("vit"), config)
