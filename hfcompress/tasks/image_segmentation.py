"""A class for each pixel of an image: semantic segmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from hfcompress.config import nearest
from hfcompress.data.config import DataConfig
from hfcompress.errors import DataError, ModelError
from hfcompress.measure.bootstrap import Value, of_sums
from hfcompress.measure.evaluation import ClassAccuracy
from hfcompress.models.loading import AutoClass, Modality, Processor
from hfcompress.tasks.outputs import Logits, OutputKind
from hfcompress.tasks.task import ByUnits

if TYPE_CHECKING:  # they import torch, transformers and datasets
    from datasets import Dataset
    from transformers import PreTrainedConfig

    from hfcompress.data.encode import Batch, Encoded
    from hfcompress.data.image_batches import ImageCollator
    from hfcompress.data.load import Examples

COMPARED_PIXELS = 1024
"""Pixels of an image, evenly spaced, by which two models' agreement is counted."""


def mean_iou(counts: NDArray[np.float64]) -> float:
    """Return the mean over classes of intersection by union (Jaccard 1912), each of all images; a
    class that is neither in a mask nor predicted does not count.

    Args:
        counts: [3 * classes], pixels that are right, predicted and true of each class.
    """
    shares = class_iou(counts)
    known = ~np.isnan(shares)
    return float(shares[known].mean()) if known.any() else 0.0


def class_iou(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection by union of each class; NaN where both are empty.

    Args:
        counts: as in `mean_iou`.
    """
    right, predicted, true = counts.reshape(3, -1)
    union = predicted + true - right
    shares: NDArray[np.float64] = np.full(len(union), np.nan)
    np.divide(right, union, out=shares, where=union > 0)
    return shares


def pixel_accuracy(counts: NDArray[np.float64]) -> float:
    """Return the share of pixels whose class is right.

    Args:
        counts: as in `mean_iou`.
    """
    right, _, true = counts.reshape(3, -1).sum(1)
    return float(right / true) if true else 0.0


_METRICS: Mapping[str, Callable[[NDArray[np.float64]], float]] = MappingProxyType(
    {"mean_iou": mean_iou, "pixel_accuracy": pixel_accuracy}
)


@dataclass(frozen=True)
class SegmentedImages:
    """What the outputs of measured images are compared with: their pixels are counted already.

    Attributes:
        images: how many.
        classes: how many.
    """

    images: int
    classes: int

    def check(self, outputs: object) -> tuple[NDArray[np.float64], Logits]:
        """Return the counts, [images, 3 * classes], and the compared pixels' classes.

        Raises:
            DataError: outputs of other images or classes.
        """
        found, counts = np.asarray(outputs, np.float32), 3 * self.classes
        if found.shape != (self.images, counts + COMPARED_PIXELS):
            raise DataError(
                f"got outputs of shape {found.shape} for {self.images} images with "
                f"{self.classes} classes; use the same images and labels for both"
            )
        return found[:, :counts].astype(np.float64), found[:, counts:]


class ImageSegmentation(ByUnits):
    """A class for each pixel; a `hfcompress.tasks.task.Task`.

    Logits are resized to the mask, bilinearly, and the class with the highest one is the
    answer, as ``post_process_semantic_segmentation`` of transformers has it. An output is of an
    image: for each class the pixels that are right, that are predicted and that are true, without
    those that count nowhere; then the predicted classes of `COMPARED_PIXELS`. That is 6 KB for 150
    classes, where the classes of all pixels would be a megabyte.
    """

    name = "image-segmentation"
    modality: Modality = "image"

    def metrics(self, kind: OutputKind = "pixels") -> tuple[str, ...]:
        """Return the mean intersection over union, and the share of right pixels."""
        return tuple(_METRICS)

    def kind(self, config: PreTrainedConfig) -> OutputKind:
        """Return that logits are of pixels."""
        return "pixels"

    def auto_class(self) -> AutoClass:
        """Return ``AutoModelForSemanticSegmentation``."""
        from transformers import AutoModelForSemanticSegmentation

        return cast(AutoClass, AutoModelForSemanticSegmentation)

    def check_head(self, config: PreTrainedConfig, model: str, kind: OutputKind = "pixels") -> None:
        """Refuse a head of fewer than two classes.

        Raises:
            ModelError: such a head.
        """
        if (config.num_labels or 0) < 2:
            raise ModelError(
                f"the head of model {model!r} has {config.num_labels} class; give two, such as "
                f"background and object"
            )

    def load(
        self,
        config: DataConfig,
        need_train: bool,
        splits: Mapping[str, Dataset] | None = None,
    ) -> Examples:
        """Read images and masks, or take those of ``splits``.

        Classes are named by ``data.labels``; without it they are as many as the masks have.

        Raises:
            SourceError, DataError: as `hfcompress.data.load.load_examples`; an image without a
                mask, or with one of another size.
        """
        from hfcompress.data.columns import find_column
        from hfcompress.data.image_batches import readable_rows
        from hfcompress.data.load import Examples
        from hfcompress.data.masks import check_masks, mask_columns, read_masks
        from hfcompress.data.split import choose_splits, divided

        raw, notes = read_masks(config) if splits is None else (dict(splits), ())
        chosen = choose_splits(raw, config, need_train)
        first = next(iter(chosen.values()))
        image, mask = mask_columns(config, first)
        group = [] if config.group is None else [find_column(config.group, (), first, "group")]
        sides, dropped = {}, dict[str, int]()
        for side, rows in chosen.items():
            sides[side] = rows.select_columns(list({image, mask, *group}))
            if config.skip_unreadable:
                for column in (image, mask):
                    sides[side], more = readable_rows(sides[side], column, side, dropped)
                    notes = (*notes, *more)
        both = divided(sides, config, need_train)
        measured = both["eval"]
        if measured is None or not len(measured):
            raise DataError(f"data: the eval side of {config.path!r} has no usable row")
        highest = max(
            check_masks(rows, image, mask, side) for side, rows in both.items() if rows is not None
        )
        return Examples(
            train=both["train"], eval=measured, columns=(image, mask), modality=self.modality,
            labels=_class_names(config, highest), dropped=dropped, notes=notes, kind="pixels",
            config=config,
        )  # fmt: skip

    def encode(
        self, examples: Examples, rows: Dataset, processor: Processor, max_length: int | None
    ) -> Encoded:
        """Encode one side of the examples; images whose mask has no pixel that counts are left out.

        Training masks are resized as the images are, by nearest pixel; measured ones keep their
        size.

        Raises:
            DataError: as `hfcompress.data.masks.Masks` and `hfcompress.data.image_batches`.
            ModelError: an image processor that cuts images, so that masks do not fit.
        """
        from hfcompress.data.encode import Encoded
        from hfcompress.data.image_batches import image_rows
        from hfcompress.data.masks import MaskCollator, Masks

        _check_processor(processor)
        image, column = examples.columns
        numbered = rows.select_columns(image).add_column("label", list(range(len(rows))))
        encoded, images = image_rows(numbered, image, processor)
        trains = rows is examples.train and rows is not examples.eval
        reduces = bool(getattr(processor, "do_reduce_labels", False))
        size = _size(encoded, images) if trains else None
        masks = Masks(rows, column, examples.labels, examples.ignored, reduces, size)
        kept = masks.labelled()
        if not kept:
            raise DataError("data: no mask has a pixel that counts; all of them are ignored")
        left_out = len(rows) - len(kept)
        return Encoded(
            encoded.select(kept) if left_out else encoded,
            None,
            MaskCollator(images, masks),
            counted=partial(_counted, len(examples.labels), examples.ignored),
            source=rows.select(kept) if left_out else rows,
            notes=(f"{left_out:,} images without a pixel that counts are left out",)
            if left_out
            else (),
        )

    def references(self, data: Encoded, labels: Sequence[str]) -> SegmentedImages:
        """Return how many images and classes are compared."""
        return SegmentedImages(len(data), len(labels))

    def units(self, metric: str, outputs: Logits, references: object) -> NDArray[np.float64]:
        """Return the pixels of each image that are right, predicted and true of each class,
        [images, 3 * classes].

        Raises:
            DataError: another metric, or outputs that do not fit.
        """
        if metric not in _METRICS:
            hint = nearest(metric, list(_METRICS))
            raise DataError(f"{metric!r} is not a metric of {self.name}{hint}")
        return cast(SegmentedImages, references).check(outputs)[0]

    def of_units(self, metric: str, units: NDArray[np.float64]) -> Value:
        """Return the metric of some images, from the sums of their counts."""
        return of_sums(units, _METRICS[metric])

    def same_units(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> bool:
        """Return whether both are of as many images, with the same true pixels."""
        if not super().same_units(first, second):
            return False
        true = slice(2 * first.shape[1] // 3, None)
        return bool((first[:, true] == second[:, true]).all())

    def by_class(
        self, outputs: Logits, references: object, dense: Logits, names: Sequence[str]
    ) -> list[ClassAccuracy]:
        """Return the intersection over union of each class that is in a mask, of both models."""
        asked = cast(SegmentedImages, references)
        own, other = (asked.check(given)[0].sum(0) for given in (outputs, dense))
        rows = zip(names, own.reshape(3, -1)[2], class_iou(own), class_iou(other), strict=True)
        return [
            {"name": name, "n": int(n), "value": float(ours), "dense": float(theirs),
             "metric": "iou"}
            for name, n, ours, theirs in rows
            if n
        ]  # fmt: skip

    def agreement(self, outputs: Logits, dense: Logits, references: object) -> float:
        """Return the share of the compared pixels to which both give the same class."""
        asked = cast(SegmentedImages, references)
        return float((asked.check(outputs)[1] == asked.check(dense)[1]).mean())


def _class_names(config: DataConfig, highest: int) -> list[str]:
    """Return the names in ``data.labels``, or the default ones for classes up to the highest.

    Raises:
        DataError: a mapping, which has no order.
    """
    from hfcompress.models.labels import label_name

    if config.labels is None:
        return [f"LABEL_{number}" for number in range(highest + 1)]
    if isinstance(config.labels, Mapping):
        raise DataError("data.labels names the classes 0, 1, ... of masks; give a list")
    return [label_name(name) for name in config.labels]


def _size(rows: Dataset, images: ImageCollator) -> tuple[int, int]:
    """Return height and width of the images that a model reads."""
    first = images([rows[0]])["pixel_values"]
    return int(first.shape[-2]), int(first.shape[-1])


def _check_processor(processor: Processor) -> None:
    for name in ("do_center_crop", "do_pad"):
        if getattr(processor, name, None):
            raise ModelError(
                f"the image processor has {name}, so that masks of whole images do not fit its "
                f"images; set it to false in preprocessor_config.json"
            )


def _counted(classes: int, ignored: int, logits: Logits, batch: Batch) -> Logits:
    """Return the pixels of each image that are right, predicted and true of each class, and the
    predicted classes of some of its pixels, [images, 3 * classes + `COMPARED_PIXELS`].

    Raises:
        ModelError: logits of another number of classes.
        DataError: logits that are not finite.
    """
    import torch

    from hfcompress.data.masks import inside

    if logits.ndim != 4 or logits.shape[1] != classes:
        raise ModelError(
            f"the model gives logits of shape {logits.shape} for {classes} classes; image-"
            f"segmentation takes [images, classes, height, width]"
        )
    if not np.isfinite(logits).all():
        raise DataError("some outputs are not finite; check the model's weights and dtype")
    rows = []
    for given, labels in zip(torch.from_numpy(logits), batch["labels"], strict=True):
        mask = inside(labels).numpy()
        full = torch.nn.functional.interpolate(
            given[None], size=mask.shape, mode="bilinear", align_corners=False
        )
        counts = mask != ignored
        found, true = full[0].argmax(0).numpy()[counts], mask[counts]
        counted = (true[found == true], found, true)
        parts = [np.bincount(part, minlength=classes) for part in counted]
        shown = np.linspace(0, len(found) - 1, COMPARED_PIXELS).astype(np.int64)
        rows.append(np.concatenate([*parts, found[shown]]).astype(np.float32))
    return np.stack(rows)


IMAGE_SEGMENTATION = ImageSegmentation()
