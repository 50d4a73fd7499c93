"""Semantic segmentation: mean IoU, masks of data sets, losses that leave pixels out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, Image
from numpy.typing import NDArray
from PIL import Image as Pillow
from transformers import AutoModelForSemanticSegmentation, pipeline

import hfcompress
from hfcompress.checkpoint.save import save_compressed
from hfcompress.cli.commands import main
from hfcompress.data.config import DataConfig
from hfcompress.data.load import align_examples
from hfcompress.data.masks import OUTSIDE, Masks, read_masks
from hfcompress.distillation.config import DistillationLossConfig
from hfcompress.distillation.losses import soft_loss
from hfcompress.distillation.teacher_loss import TeacherLoss
from hfcompress.errors import ConfigError, DataError, ModelError, TargetError
from hfcompress.inference import predict
from hfcompress.measure.size import count_parameters
from hfcompress.models.loading import LoadedModel
from hfcompress.recipes.schema import parse_recipe
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.shrink import shrink
from hfcompress.sweep import comparison
from hfcompress.sweep.run import run
from hfcompress.tasks import image_segmentation
from hfcompress.tasks.image_segmentation import IMAGE_SEGMENTATION as TASK
from hfcompress.tasks.image_segmentation import SegmentedImages
from hfcompress.tasks.registry import find_task, infer_task
from hfcompress.training.hard_loss import at_labels, hard_loss
from hfcompress.training.loops import evaluate
from tests.tasks.segmented import (
    CLASSES,
    ONE_STAGE,
    SIDE,
    pictures,
    processor,
    save_segformer,
    tiny_segformer,
    write_pictures,
)


def rows(
    count: int, seed: int = 0, names: tuple[str, str] = ("image", "mask"), **options: Any
) -> Any:
    """A data set as the hub has them, of images in memory."""
    found = pictures(count, seed, **options)
    data = Dataset.from_dict(
        {name: list(part) for name, part in zip(names, zip(*found, strict=True), strict=True)}
    )
    for name in names:
        data = data.cast_column(name, Image())
    return data


def examples(config: DataConfig | None = None, model: Any = None, **splits: Any) -> Any:
    splits = splits or {"train": rows(6), "validation": rows(4, seed=1)}
    found = TASK.load(config or DataConfig(path="data"), need_train=True, splits=splits)
    loaded = LoadedModel(model or tiny_segformer(), processor(), False, "")
    return align_examples(found, loaded, "m")


# --- the metric --------------------------------------------------------------------------------


def by_hand(
    logits: NDArray[np.float32], masks: list[NDArray[np.int64]], classes: int
) -> tuple[float, float, list[float]]:
    """Mean IoU, pixel accuracy and the IoU of each class, pixel after pixel."""
    both = [[0, 0] for _ in range(classes)]
    right = every = 0
    for given, mask in zip(logits, masks, strict=True):
        full = torch.nn.functional.interpolate(
            torch.from_numpy(given)[None], size=mask.shape, mode="bilinear", align_corners=False
        )
        for found, true in zip(
            full[0].argmax(0).flatten().tolist(), mask.flatten().tolist(), strict=True
        ):
            if true == 255:
                continue
            every, right = every + 1, right + (found == true)
            for number in {found, true}:
                both[number][0] += found == true
                both[number][1] += 1
    shares = [one / all_ if all_ else float("nan") for one, all_ in both]
    return float(np.nanmean(shares)), right / every, shares


@pytest.mark.parametrize("seed", range(4))
def test_counts_as_a_loop_over_pixels_does(seed: int) -> None:
    generator, classes = np.random.default_rng(seed), 6
    sizes = [tuple(generator.integers(5, 14, 2)) for _ in range(5)]
    # Class 5 is in no mask, class 4 in none and never predicted.
    masks = [generator.choice([0, 1, 2, 3, 255], size) for size in sizes]
    logits = generator.normal(size=(5, classes, 3, 4)).astype(np.float32)
    logits[:, 4] = -9
    labels = torch.full((5, 14, 14), OUTSIDE)
    for place, mask in enumerate(masks):
        labels[place, : mask.shape[0], : mask.shape[1]] = torch.from_numpy(mask)
    outputs = image_segmentation._counted(classes, 255, logits, {"labels": labels})
    asked = SegmentedImages(5, classes)
    mean, accuracy, shares = by_hand(logits, masks, classes)
    assert TASK.metric("mean_iou", outputs, asked) == pytest.approx(mean)
    assert TASK.metric("pixel_accuracy", outputs, asked) == pytest.approx(accuracy)
    names = [f"class {number}" for number in range(classes)]
    found = TASK.by_class(outputs, asked, outputs, names)
    assert [one["name"] for one in found] == names[:4]
    assert [one["value"] for one in found] == pytest.approx(shares[:4])
    assert np.isnan(shares[4])
    assert shares[5] == 0  # predicted and never true


def test_the_interval_is_over_images_and_paired_with_dense() -> None:
    generator = np.random.default_rng(0)
    masks = torch.from_numpy(generator.integers(0, 3, (8, 12, 12)))
    dense = torch.nn.functional.one_hot(masks, 3).permute(0, 3, 1, 2).float().numpy()
    worse = dense + generator.normal(scale=0.6, size=dense.shape).astype(np.float32)
    first, second = (
        image_segmentation._counted(3, 255, part, {"labels": masks}) for part in (dense, worse)
    )
    asked = SegmentedImages(8, 3)
    found = TASK.quality("mean_iou", second, asked, first)
    assert found.n == 8
    assert found.low < found.value < found.high < 1
    assert found.drop == pytest.approx(1 - found.value)
    assert found.drop_low is not None
    assert found.drop_low > 0
    assert found.mcnemar_p is None
    accuracy = TASK.metric("pixel_accuracy", second, asked)  # dense is always right
    assert found.agreement == pytest.approx(accuracy, abs=0.02)
    units = [TASK.units("mean_iou", part, asked) for part in (first, second)]
    between = comparison._by_units("mean_iou", TASK.name, *units)
    assert between is not None
    assert (between.n, between.test) == (8, "paired bootstrap")
    assert between.value == pytest.approx(found.drop)
    units[1][0, -1] += 1  # another mask
    assert comparison._by_units("mean_iou", TASK.name, *units) is None
    with pytest.raises(DataError, match="'iou' is not a metric of image-segmentation"):
        TASK.metric("iou", first, asked)
    with pytest.raises(DataError, match="use the same images and labels for both"):
        TASK.metric("mean_iou", first[1:], asked)


def test_outputs_are_small_and_those_of_the_whole_model() -> None:
    found, model = examples(), tiny_segformer()
    data = TASK.encode(found, found.eval, processor(), None)
    outputs = predict(model, data, 3)
    assert outputs.shape == (4, 9 + image_segmentation.COMPARED_PIXELS)
    masks = [np.asarray(mask).astype(np.int64) for _, mask in pictures(4, seed=1)]
    images = processor()([image for image, _ in pictures(4, seed=1)], return_tensors="pt")
    with torch.inference_mode():
        logits = model(**images).logits.numpy()
    mean, _, _ = by_hand(logits, masks, 3)
    assert TASK.metric("mean_iou", outputs, TASK.references(data, CLASSES)) == pytest.approx(mean)
    broken = logits.copy()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="some outputs are not finite"):
        image_segmentation._counted(3, 255, broken, {"labels": torch.zeros(4, 8, 8).long()})
    with pytest.raises(ModelError, match=r"gives logits of shape \(4, 3, 8, 8\) for 4 classes"):
        image_segmentation._counted(4, 255, logits, {"labels": torch.zeros(4, 8, 8).long()})


# --- masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduces", [False, True])
def test_training_masks_are_those_of_the_image_processor(reduces: bool) -> None:
    own, made = processor(do_reduce_labels=reduces), pictures(6)
    found = examples()
    data = TASK.encode(found, found.train, own, None)
    ((_, batch),) = data.batches(6)
    images, masks = zip(*made, strict=True)
    expected = own(list(images), segmentation_maps=list(masks), return_tensors="pt")
    assert torch.equal(batch["labels"], expected["labels"])
    assert torch.allclose(batch["pixel_values"], expected["pixel_values"], atol=1e-2)
    ((_, measured),) = TASK.encode(found, found.eval, own, None).batches(4)
    assert measured["labels"].shape == (4, 40, 48)


def test_the_models_own_ignored_label_counts_nowhere() -> None:
    found = examples(model=tiny_segformer(semantic_loss_ignore_index=0))
    assert found.ignored == 0
    ((_, batch),) = TASK.encode(found, found.train, processor(), None).batches(6)
    assert set(batch["labels"].flatten().tolist()) == {0, 1, 2}  # 255 is as 0 is
    data = TASK.encode(found, found.eval, processor(), None)
    counts = predict(tiny_segformer(), data, 4)[:, :9].sum(0).reshape(3, 3)
    assert counts[2, 0] == 0


def test_images_without_a_pixel_that_counts_are_left_out() -> None:
    made = rows(4)
    empty = [np.full((40, 48), 255, np.uint8), *map(np.asarray, made["mask"][1:])]
    data = made.remove_columns("mask").add_column("mask", [mask.tolist() for mask in empty])
    found = examples(train=data, validation=data)
    encoded: Any = TASK.encode(found, found.eval, processor(), None)
    assert len(encoded) == len(encoded.source) == 3
    assert encoded.notes == ("1 images without a pixel that counts are left out",)
    ((_, batch),) = encoded.batches(3)
    assert torch.equal(batch["labels"][0], torch.from_numpy(np.asarray(empty[1]).astype(np.int64)))


def test_reads_folders_of_images_and_masks(tmp_path: Path) -> None:
    write_pictures(tmp_path / "splits" / "train", 3)
    write_pictures(tmp_path / "splits" / "dev", 2)
    write_pictures(tmp_path / "lone", 4)
    (tmp_path / "lone" / "masks").rename(tmp_path / "lone" / "annotations")
    (tmp_path / "inner").mkdir()
    for name in ("images", "masks"):
        (tmp_path / "inner" / name).mkdir()
        for split, folder in (("training", "train"), ("validation", "dev")):
            (tmp_path / "inner" / name / split).symlink_to(tmp_path / "splits" / folder / name)
    sizes = {}
    for folder in ("splits", "lone", "inner"):
        found, _ = read_masks(DataConfig(path=str(tmp_path / folder)))
        sizes[folder] = {name: len(part) for name, part in found.items()}
    assert sizes["splits"] == sizes["inner"] == {"train": 3, "validation": 2}
    assert sizes["lone"] == {"train": 4}
    config = DataConfig(path=str(tmp_path / "splits"), labels=CLASSES)
    assert TASK.load(config, need_train=True).labels == list(CLASSES)
    config = DataConfig(path=str(tmp_path / "lone"))
    found = TASK.load(config, need_train=True)
    assert found.labels == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert found.train is not None
    assert (len(found.train), len(found.eval)) == (3, 1)


def test_reads_tables_of_paths_and_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    write_pictures(tmp_path, 3)
    (tmp_path / "images").rename(tmp_path / "photos")
    lines = ["image,mask", *(f"photos/0{place}.png,masks/0{place}.png" for place in range(3))]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    config = DataConfig(path=str(tmp_path / "rows.csv"))
    found = TASK.load(config, need_train=False)
    assert (found.columns, len(found.eval)) == (("image", "mask"), 3)
    (tmp_path / "masks" / "01.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read this as an image: .*01.png"):
        TASK.load(config, need_train=False)
    found = TASK.load(config.replace(skip_unreadable=True), need_train=False)
    assert (len(found.eval), found.dropped) == (2, {"eval: unreadable image": 1})


@pytest.mark.parametrize(
    "names", [("image", "annotation"), ("pixel_values", "label"), ("img", "own")]
)
def test_finds_the_columns_of_images_and_masks(names: tuple[str, str]) -> None:
    config = DataConfig(path="data", label="own" if "own" in names else None)
    found = TASK.load(config, need_train=False, splits={"train": rows(2, names=names)})
    assert found.columns == names
    with pytest.raises(DataError, match=r"none of mask, segmentation_mask, .* is a column"):
        TASK.load(DataConfig(path="d"), False, {"train": rows(2, names=("image", "own"))})
    data = rows(2).remove_columns("mask").add_column("label", [0, 1])
    with pytest.raises(DataError, match="column 'label' does not hold masks"):
        TASK.load(DataConfig(path="d", label="label"), False, {"train": data})


def test_refuses_masks_that_do_not_fit(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", 3)
    config = DataConfig(path=str(folder))
    mask = folder / "masks" / "01.png"
    Pillow.new("L", (48, 41)).save(mask)
    with pytest.raises(DataError, match=r"01.png has 48x41 pixels and its image 48x40; gi"):
        TASK.load(config, need_train=False)
    Pillow.fromarray(np.random.default_rng(0).integers(0, 9, (40, 48, 3), np.uint8)).save(mask)
    with pytest.raises(DataError, match=r"and this is an image of colours: .*01.png"):
        TASK.load(config, need_train=False)
    Pillow.new("L", (48, 40), 7).save(mask)
    loaded = LoadedModel(tiny_segformer(), processor(), False, "")
    found = align_examples(TASK.load(config, need_train=False), loaded, "m")
    with pytest.raises(
        DataError,
        match=r"01.png has the class number 7 and the model the 3 labels ground, di",
    ):
        TASK.encode(found, found.eval, processor(), None)
    mask.unlink()
    with pytest.raises(DataError, match=r"'images/01.png' has no mask; put it at 'masks/01.png'"):
        TASK.load(config, need_train=False)
    (folder / "masks").rename(folder / "other")
    with pytest.raises(DataError, match="has images/ and no masks/; put the mask of each"):
        TASK.load(config, need_train=False)


def test_palette_masks_hold_places_in_the_palette() -> None:
    numbers = np.array([[0, 1], [2, 255]], np.uint8)
    mask = Pillow.fromarray(numbers, mode="P")
    mask.putpalette([9] * 768)
    data = Dataset.from_list([{"mask": mask}]).cast_column("mask", Image())
    assert Masks(data, "mask", CLASSES)[0].tolist() == numbers.tolist()


# --- recipes -----------------------------------------------------------------------------------


PRUNE = [{"prune": {"sparsity": 0.5}}]


def written(folder: Path) -> dict[str, Any]:
    """A recipe's model, data and task."""
    write_pictures(folder / "data" / "train", 12)
    write_pictures(folder / "data" / "dev", 6, seed=1)
    return {"name": "seg", "task": TASK.name, "model": str(save_segformer(folder / "model")),
            "data": str(folder / "data")}  # fmt: skip


def test_trains_and_prunes(tmp_path: Path) -> None:
    steps = [{"finetune": {"epochs": 8, "learning_rate": 3e-3, "batch_size": 4}},
             {"prune": {"sparsity": 0.3, "method": "wanda"}}]  # fmt: skip
    asked = {**written(tmp_path), "steps": steps, "measure": {"also": ["pixel_accuracy"]}}
    made = run(parse_recipe(asked), draw=False)
    assert made.failures == []
    (row,) = made.rows
    assert (row["metric"], row["n"], row["mcnemar_p"]) == ("mean_iou", 6, None)
    assert row["value"] > 0.4
    assert row["low"] <= row["value"] <= row["high"]
    assert row["other_metrics"]["pixel_accuracy"] > 0.8
    assert [one["name"] for one in row["classes"]] == list(CLASSES)
    assert {one["metric"] for one in row["classes"]} == {"iou"}


def test_a_new_head_has_the_named_classes(tmp_path: Path) -> None:
    asked = written(tmp_path)
    data = {"path": asked["data"], "labels": ["a", "b", "c", "d"]}
    steps: list[dict[str, Any]] = [{"finetune": {"max_steps": 1}}]
    made = run(parse_recipe({**asked, "data": data, "steps": steps}), tmp_path / "out", draw=False)
    (row,) = made.rows
    assert [one["name"] for one in row["classes"]] == ["a", "b", "c"]  # no pixel is d
    with pytest.raises(ModelError, match="has no trained classification head for these labels"):
        run(
            parse_recipe({**asked, "data": data, "steps": PRUNE}),
            draw=False,
        )
    data["labels"] = ["disc", "ground", "bar"]
    with pytest.raises(ModelError, match="so name them in the model's order"):
        run(parse_recipe({**asked, "data": data, "steps": steps}), draw=False)


def test_refuses_steps_and_models_that_do_not_fit(tmp_path: Path) -> None:
    asked = written(tmp_path)
    flips = {"finetune": {"max_steps": 1, "image_augmentation": {"flip": 0.5}}}
    with pytest.raises(ConfigError, match="changes images and not their masks; leave it out"):
        run(parse_recipe({**asked, "steps": [flips]}), draw=False)
    with pytest.raises(ModelError, match="has do_center_crop, so that masks of whole images do no"):
        TASK.encode(examples(), examples().eval, processor(do_center_crop=True), None)
    with pytest.raises(ModelError, match="has 1 class; give two"):
        TASK.check_head(tiny_segformer(labels=("one",)).config, "m")


def test_a_classifier_names_its_own_task(tmp_path: Path) -> None:
    from transformers import SegformerForImageClassification

    asked = written(tmp_path)
    SegformerForImageClassification(tiny_segformer().config).save_pretrained(tmp_path / "model")
    with pytest.raises(
        ModelError, match="whose head answers image-classification and not image-segmentation: wri"
    ):
        run(parse_recipe({**asked, "steps": PRUNE}), draw=False)


def test_finds_the_task_by_synonym_and_by_the_head() -> None:
    assert find_task("semantic-segmentation") is TASK
    config = tiny_segformer().config
    config.architectures = ["SegformerForSemanticSegmentation"]
    assert infer_task(config, "m") is TASK


# --- distilling and shrinking ------------------------------------------------------------------


def test_the_teacher_is_followed_where_pixels_have_a_label() -> None:
    found = examples()
    ((_, batch),) = TASK.encode(found, found.train, processor(), None).batches(6)
    student, teacher = tiny_segformer(0), tiny_segformer(1)
    with TeacherLoss(student, teacher, DistillationLossConfig(temperature=2.0)) as terms:
        assert terms.task == "pixels"
        outputs = student(pixel_values=batch["pixel_values"])
        taught = terms(student, batch, outputs)["soft_loss"]
        counts = terms.part_counts(batch)
    labelled = batch["labels"] != 255
    assert counts["soft_loss"] == labelled.sum()
    on_grid = labelled[:, ::4, ::4]  # the nearest pixel of each logit
    assert not on_grid.all()
    with torch.no_grad():
        theirs = teacher(pixel_values=batch["pixel_values"]).logits
    own, other = (
        (logits.movedim(1, -1)[on_grid] / 2).double().log_softmax(-1)
        for logits in (outputs.logits, theirs)
    )
    expected = 4 * (other.exp() * (other - own)).sum(-1).mean().item()
    assert taught.item() == pytest.approx(terms.weights["soft_loss"] * expected, rel=1e-4)


def test_a_teacher_on_another_grid_is_resized() -> None:
    student, teacher = tiny_segformer(0), tiny_segformer(1, strides=[2, 2])
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    outputs = student(pixel_values=images)
    with TeacherLoss(student, teacher, DistillationLossConfig(temperature=1.0)) as terms:
        found = terms(student, {"pixel_values": images}, outputs)["soft_loss"]
    with torch.no_grad():
        theirs = teacher(pixel_values=images).logits
    assert theirs.shape[-1] == 2 * outputs.logits.shape[-1]
    halved = torch.nn.functional.interpolate(theirs, scale_factor=0.5, mode="bilinear")
    assert found.item() == pytest.approx(soft_loss(outputs.logits, halved, 1.0, "pixels").item())


def test_the_loss_on_masks_is_the_models_own() -> None:
    model, found = tiny_segformer(), examples()
    ((_, batch),) = TASK.encode(found, found.train, processor(), None).batches(6)
    outputs = model(**batch)
    own = hard_loss(outputs.logits, batch["labels"], "pixels")
    assert own.item() == pytest.approx(outputs.loss.item(), rel=1e-5)
    full, labels = at_labels(outputs.logits, batch["labels"])
    counted = labels != -100
    right = (full.argmax(-1) == labels)[counted].float().mean().item()
    assert evaluate(model, [batch]) == pytest.approx(right)
    with pytest.raises(DataError, match=r"give a mask for each image, \[rows, height, width\]"):
        evaluate(model, [{**batch, "labels": torch.zeros(6).long()}])


def test_a_shrunk_model_is_what_is_reloaded(tmp_path: Path) -> None:
    model, images = tiny_segformer(), torch.randn(4, 3, SIDE, SIDE)
    shrink(model, ShrinkConfig(macs=0.8, calibration_rows=4), [{"pixel_values": images}])
    save_compressed(model, tmp_path / "shrunk")
    kind: Any = AutoModelForSemanticSegmentation
    again = kind.from_pretrained(tmp_path / "shrunk")
    assert count_parameters(again) < count_parameters(tiny_segformer())
    with torch.inference_mode():
        assert torch.equal(again(images).logits, model(images).logits)


def test_a_student_of_fewer_layers_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    steps: list[dict[str, Any]] = [{"distill": {"student": {"layers": 1}, "max_steps": 1}}]
    with pytest.raises(TargetError, match="where the heads and neurons of 'segformer' are is not"):
        run(parse_recipe({**written(tmp_path), "steps": steps}), draw=False)


def test_every_step_of_a_recipe(tmp_path: Path) -> None:
    steps = [
        {"prune": {"sparsity": 0.3}},
        {"distill": {"max_steps": 2, "batch_size": 4}},
        {"quantize": {"backend": "torch"}},
    ]
    asked = parse_recipe({**written(tmp_path), "steps": steps, "save_models": True})
    made = run(asked, tmp_path / "out")
    assert made.failures == []
    assert made.rows[0]["metric"] == "mean_iou"
    (folder,) = (found.parent for found in (tmp_path / "out").glob("**/hfcompress.json"))
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card
    assert 'model("photo.jpg")' in card
    segment: Any = hfcompress.load(folder)
    names = {one["label"] for image, _ in pictures(3) for one in segment.predict(image)}
    assert names <= set(CLASSES)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "mean_iou" in page


def test_a_model_from_scratch_and_the_command_line(tmp_path: Path) -> None:
    asked = written(tmp_path)
    fields = {name: value for name, value in tiny_segformer(**ONE_STAGE).config.to_dict().items()
              if name in ("decoder_hidden_size", *ONE_STAGE)}  # fmt: skip
    recipe = {
        **asked,
        "model": {"config": {"model_type": "segformer", **fields}, "image_size": SIDE},
        "data": {"path": asked["data"], "labels": list(CLASSES)},
        "steps": [{"finetune": {"max_steps": 2, "batch_size": 4}}],
        "save_models": True,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["run", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "out")]) == 0
    (folder,) = (found.parent for found in (tmp_path / "out").glob("**/config.json"))
    ask: Any = pipeline("image-segmentation", model=str(folder), backend="pil")
    assert {one["label"] for one in ask(pictures(1)[0][0])} <= set(CLASSES)
    pruned = tmp_path / "pruned"
    command = ["prune", str(folder), "--sparsity", "0.5", "--output", str(pruned)]
    assert main([*command, "--data", str(asked["data"])]) == 0
    kind: Any = AutoModelForSemanticSegmentation
    (made,) = (found.parent for found in pruned.glob("**/config.json"))
    weight = kind.from_pretrained(made).segformer.stages[0].blocks[0].mlp.fc1.weight
    assert (weight == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
