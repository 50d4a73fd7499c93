"""Images with a mask each, whose pixels are class numbers: folders, columns, arrays, batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray
from torch import Tensor

from hfcompress.data.columns import find_column, one_label
from hfcompress.data.config import IMAGE_COLUMNS, DataConfig
from hfcompress.data.image_batches import KEPT_BYTES, Batch, ImageCollator, undecoded
from hfcompress.data.images import image_size, open_mask
from hfcompress.data.read import IMAGE_SUFFIXES, read, split_name
from hfcompress.errors import DataError
from hfcompress.models.hub import resolve

MASK_COLUMNS = ("mask", "segmentation_mask", "annotation", "label", "labels", "segmentation",
                "annotated")  # fmt: skip
MASK_FOLDERS = ("masks", "annotations", "labels")
IGNORED = 255
"""The class number of pixels that count nowhere, as data sets of segmentation have it."""
OUTSIDE = -(1 << 15)
"""Stands behind the edges of masks that are smaller than the largest of their batch."""
_MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".pgm")
ClassNumbers = NDArray[np.integer[Any]]
"""A mask, [height, width]."""


# --- folders and columns -----------------------------------------------------------------------


def read_masks(config: DataConfig) -> tuple[DatasetDict, tuple[str, ...]]:
    """Return the rows of each split, of a folder of images and masks or of any other source.

    A folder has ``images/`` beside ``masks/`` (or ``annotations/``), or one folder of these for
    each split, or folders of splits in them. An image and its mask have the same name. Other
    files are tables with a column of images, or of their paths, and one of masks.

    Raises:
        SourceError: as `hfcompress.data.read.read`.
        DataError: as there; an image without a mask.
    """
    folder = resolve(config.path, "data").path
    sides = _sides(folder) if folder is not None and folder.is_dir() else {}
    if folder is None or not sides:
        raw, notes_read = read(config, "image")
        beside = folder if folder is None or folder.is_dir() else folder.parent
        return DatasetDict({name: _opened(raw[name], beside, config) for name in raw}), notes_read
    found, notes = DatasetDict(), list[str]()
    for name, (images, masks) in sides.items():
        found[name], more = _paired(images, masks, folder)
        notes += more
    return found, tuple(notes)


def _opened(rows: Dataset, folder: Path | None, config: DataConfig) -> Dataset:
    """Return rows with images in the place of the paths of masks, relative to the folder of their
    file."""
    named = one_label(config)
    names = MASK_COLUMNS if named is None else (named,)
    paths = (datasets.Value("string"), datasets.Value("large_string"))
    column = next((name for name in names if rows.features.get(name) in paths), None)
    if folder is None or column is None:
        return rows
    found = [None if path is None else str(folder / path) for path in rows[column][:]]
    rows = rows.remove_columns(column).add_column(column, found)
    return rows.cast_column(column, datasets.Image(decode=False))


def _sides(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Return the folders of images and of masks by split; empty for another kind of folder."""
    if (folder / "images").is_dir():
        images, masks = folder / "images", _masks_beside(folder)
        inner = [path for path in sorted(images.iterdir()) if path.is_dir()]
        if not inner:
            return {"train": (images, masks)}
        return {split_name(path): (path, masks / path.name) for path in inner}
    splits = [path for path in sorted(folder.iterdir()) if (path / "images").is_dir()]
    return {split_name(path): (path / "images", _masks_beside(path)) for path in splits}


def _masks_beside(folder: Path) -> Path:
    for name in MASK_FOLDERS:
        if (folder / name).is_dir():
            return folder / name
    raise DataError(
        f"data: {str(folder)!r} has images/ and no masks/; put the mask of each image there, a PNG "
        f"of class numbers with the image's name"
    )


def _paired(images: Path, masks: Path, folder: Path) -> tuple[Dataset, list[str]]:
    """Return the images of a folder with their masks.

    Raises:
        DataError: no image, or an image without a mask.
    """
    own, other = _files(images, IMAGE_SUFFIXES), _files(masks, _MASK_SUFFIXES)
    missing = [path for name, path in own.items() if name not in other]
    if missing:
        more = f", and {len(missing) - 1:,} more images have none" if len(missing) > 1 else ""
        wanted = masks.relative_to(folder) / missing[0].relative_to(images).with_suffix(".png")
        raise DataError(
            f"data: the image {str(missing[0].relative_to(folder))!r} has no mask{more}; put it at "
            f"{str(wanted)!r}, or remove the image"
        )
    if not own:
        raise DataError(f"data: {str(images)!r} has no image ({', '.join(IMAGE_SUFFIXES)})")
    unused = len(other.keys() - own.keys())
    notes = [f"{unused:,} masks in {str(masks.relative_to(folder))!r} have no image"]
    columns = {"image": map(str, own.values()), "mask": [str(other[name]) for name in own]}
    rows = Dataset.from_dict({name: list(paths) for name, paths in columns.items()})
    for name in columns:
        rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows, notes if unused else []


def _files(folder: Path, suffixes: Sequence[str]) -> dict[Path, Path]:
    """Return the images of a folder by their path in it without suffix."""
    return {
        path.relative_to(folder).with_suffix(""): path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    }


def mask_columns(config: DataConfig, rows: Dataset) -> tuple[str, str]:
    """Return the columns of images and of masks.

    Raises:
        DataError: a column that does not exist, or one of masks that holds something else.
    """
    image = find_column(config.image, IMAGE_COLUMNS, rows, "image")
    named = one_label(config)
    usual = tuple(
        name for name in MASK_COLUMNS
        if any(name == column.casefold() and column != image and _holds_images(rows, column)
               for column in rows.column_names)
    )  # fmt: skip
    if named is None and not usual:
        raise DataError(
            f"data.label is not given and none of {', '.join(MASK_COLUMNS)} is a column of masks; "
            f"the data has: {', '.join(rows.column_names)}"
        )
    mask = find_column(named, usual, rows, "label")
    if mask == image or not _holds_images(rows, mask):
        raise DataError(
            f"data.label: column {mask!r} does not hold masks; name the column of images whose "
            f"pixels are class numbers"
        )
    return image, mask


def _holds_images(rows: Dataset, column: str) -> bool:
    feature = rows.features[column]
    arrays = (datasets.Array2D, datasets.Array3D, datasets.List, datasets.LargeList)
    return isinstance(feature, (datasets.Image, *arrays))


def check_masks(rows: Dataset, image: str, mask: str, side: str) -> int:
    """Return the highest class number of some masks, each of which is as large as its image.

    Args:
        rows: of one side.
        image, mask: columns.
        side: for messages.

    Raises:
        DataError: a mask that cannot be read, or of another size than its image.
    """
    highest = 0
    for place, row in enumerate(undecoded(undecoded(rows, image), mask)):
        where = f"row {place} of the {side} side"
        numbers = open_mask(row[mask], where)
        size = image_size(row[image], where)
        if numbers.shape != size:
            name = _name(row[mask]) or f"of {where}"
            raise DataError(
                f"data: the mask {name} has {_shown(numbers.shape)} pixels and its image "
                f"{_shown(size)}; give a mask of the image's size"
            )
        highest = max(highest, int(numbers.max(initial=0, where=numbers != IGNORED)))
    return highest


def _name(value: object) -> str:
    """Return the path of an image; empty where it has none."""
    return str(value["path"]) if isinstance(value, Mapping) and value.get("path") else ""


def _shown(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"


# --- arrays ------------------------------------------------------------------------------------


@dataclass
class Masks:
    """The masks of some rows, by place; kept once read, up to `KEPT_BYTES` of them.

    Attributes:
        rows: with a column of masks.
        column: its name.
        labels: the model's class names; a mask has their numbers.
        ignored: number of pixels that count nowhere, as `IGNORED` does; both are given as this.
        reduces: 0 in a mask counts nowhere and other numbers are one too high (ADE20k), as
            ``do_reduce_labels`` of an image processor has it.
        size: height and width that masks are resized to, by nearest pixel; None leaves theirs.
    """

    rows: Dataset
    column: str
    labels: Sequence[str]
    ignored: int = IGNORED
    reduces: bool = False
    size: tuple[int, int] | None = None
    _kept: dict[int, ClassNumbers] = field(default_factory=dict, repr=False)
    _bytes: int = 0

    def __post_init__(self) -> None:
        self.rows = undecoded(self.rows, self.column)
        self._fits = len(self.labels) <= IGNORED and 0 <= self.ignored <= IGNORED

    def __getitem__(self, place: int) -> ClassNumbers:
        """Return one mask.

        Raises:
            DataError: a mask that cannot be read, or a class number outside the model's labels.
        """
        if place in self._kept:
            return self._kept[place]
        numbers = self._resized(self._checked(place))
        made: ClassNumbers = numbers.astype(np.uint8) if self._fits else numbers.astype(np.int32)
        if self._bytes + made.nbytes <= KEPT_BYTES:
            self._kept[place] = made
            self._bytes += made.nbytes
        return made

    def labelled(self) -> list[int]:
        """Return the places of masks that have a pixel that counts; all masks are read.

        Raises:
            DataError: as for one mask.
        """
        return [place for place in range(len(self.rows)) if (self[place] != self.ignored).any()]

    def _checked(self, place: int) -> NDArray[np.int64]:
        value = self.rows[place][self.column]
        numbers = open_mask(value, f"row {place}").astype(np.int64)
        if self.reduces:
            numbers = np.where((numbers == 0) | (numbers == IGNORED), IGNORED, numbers - 1)
        counted = (numbers != IGNORED) & (numbers != self.ignored)
        wrong = numbers[counted & ((numbers < 0) | (numbers >= len(self.labels)))]
        if wrong.size:
            name = _name(value) or f"of row {place}"
            raise DataError(
                f"data: the mask {name} has the class number {wrong.max()} and the model the "
                f"{len(self.labels)} labels {_few(self.labels)}; write {IGNORED} where nothing "
                f"counts, or name the classes in data.labels and add a finetune step"
            )
        return np.where(counted, numbers, self.ignored)

    def _resized(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.size is None or numbers.shape == self.size:
            return numbers
        rows, columns = (
            np.minimum(((np.arange(wanted) + 0.5) * (own / wanted)).astype(np.int64), own - 1)
            for own, wanted in zip(numbers.shape, self.size, strict=True)
        )
        found: NDArray[np.int64] = numbers[rows[:, None], columns]
        return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


@dataclass(frozen=True)
class MaskCollator:
    """Rows -> one batch: ``pixel_values``, and ``labels`` int64 [rows, height, width], masks of
    smaller images filled up with `OUTSIDE`.

    Attributes:
        images: makes the pixels, and a row's ``labels``, which are the places of masks.
        masks: of the rows.
    """

    images: ImageCollator
    masks: Masks

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return one batch."""
        batch = self.images(rows)
        masks = [self.masks[int(place)] for place in batch["labels"]]
        height, width = (max(mask.shape[axis] for mask in masks) for axis in (0, 1))
        labels = torch.full((len(masks), height, width), OUTSIDE)
        for row, mask in enumerate(masks):
            labels[row, : mask.shape[0], : mask.shape[1]] = torch.from_numpy(mask.astype(np.int64))
        return {**batch, "labels": labels}

    def replace(
        self, change: Callable[[Tensor], Tensor] | None, channels_last: bool
    ) -> MaskCollator:
        """Return the collator of a training side; nothing changes images without their masks."""
        assert change is None  # `check_training` refuses it
        return replace(self, images=self.images.replace(None, channels_last))


def inside(mask: Tensor) -> Tensor:
    """Return a mask of a batch without what stands behind its edges.

    Args:
        mask: one row of ``labels``, [height, width].
    """
    return mask[: int((mask[:, 0] != OUTSIDE).sum()), : int((mask[0] != OUTSIDE).sum())]
