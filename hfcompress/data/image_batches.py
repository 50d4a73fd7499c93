"""Images -> batches: decoded and resized once, kept as bytes, normalised a batch at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import Array2D, Array3D, ClassLabel, Dataset
from datasets.features.features import Array2DExtensionType, Array3DExtensionType
from numpy.typing import NDArray
from torch import Tensor

from hfcompress.data.images import UnreadableImageError, from_array, open_image
from hfcompress.errors import DataError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

Batch = dict[str, Tensor]
Pixels = NDArray[np.uint8]
# Decoded images of at most this many bytes are kept in memory; more are decoded by the batch.
KEPT_BYTES = 2 << 30
_CHUNK = 256
_CHUNK_PIXELS = 1 << 24
_NAMED = 50


@dataclass(frozen=True)
class ImageCollator:
    """Rows -> one batch: ``pixel_values`` float32 [rows, channels, height, width], ``labels``.

    Attributes:
        scale, shift: normalised = bytes * scale + shift; float32 [channels, 1, 1].
        pixels: kept bytes [images, channels, height, width], or float32 ones that are normalised
            already; None where rows bring their own.
        change: augmentation of a batch of bytes [rows, channels, height, width], or None.
        channels_last: the memory format that convolutions are fastest in.
    """

    scale: Tensor
    shift: Tensor
    pixels: Tensor | None = None
    change: Callable[[Tensor], Tensor] | None = None
    channels_last: bool = False

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """One batch: the images of some rows, augmented in training, normalised."""
        if self.pixels is None:
            pixels = torch.stack([torch.as_tensor(row["pixels"]) for row in rows])
        else:
            pixels = self.pixels[[row["image"] for row in rows]]
        if self.change is not None:
            pixels = self.change(pixels)
        if pixels.dtype == torch.uint8:
            pixels = pixels.float().mul_(self.scale).add_(self.shift)
        if self.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        batch = {"pixel_values": pixels}
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch

    def replace(
        self, change: Callable[[Tensor], Tensor] | None, channels_last: bool
    ) -> ImageCollator:
        """The collator of a training side."""
        return replace(self, change=change, channels_last=channels_last)


def channels_of(processor: object) -> int:
    """How many channels a processor's images have: one for each of its means."""
    mean = getattr(processor, "image_mean", None)
    return len(mean) if isinstance(mean, (list, tuple)) else 3


def image_rows(rows: Dataset, column: str, processor: object) -> tuple[Dataset, ImageCollator]:
    """Rows of images as the model's processor makes them, and their collator.

    Where all of them take at most `KEPT_BYTES` they are decoded and resized now and kept as
    bytes; the rows then hold each image's place and a hash of its content. Otherwise images are
    decoded when their batch is asked for.

    Args:
        rows: with a column of images and an integer ``label``.
        column: of images: encoded ones, arrays, or lists of numbers.
        processor: the model's image processor; as many channels as it has means.

    Raises:
        DataError: an image that cannot be read, or that the processor refuses.
    """
    maker, failed = _Maker(processor), list[UnreadableImageError]()
    image = next(_images(rows, column, maker.grey, failed), None)
    if image is None:
        raise unreadable_images(failed)
    first, failed = maker.make([image]), []
    scale, shift = maker.normalisation()
    if first[0].nbytes * len(rows) > KEPT_BYTES:
        for _ in _images(rows, column, maker.grey, failed):
            pass  # an image that cannot be read must not stop the training later
        if failed:
            raise unreadable_images(failed)
        raw = undecoded(rows, column)
        return raw.with_transform(_Loader(column, maker)), ImageCollator(scale, shift)
    kept = np.empty((len(rows), *first.shape[1:]), first.dtype)
    done = 0
    for part in _chunks(rows, column, maker, failed):
        if part.shape[1:] != kept.shape[1:]:
            raise DataError(
                f"data: the processor makes images of {kept.shape[1:]} and {part.shape[1:]}; "
                f"set do_center_crop or a fixed size in preprocessor_config.json"
            )
        kept[done : done + len(part)] = part
        done += len(part)
    if failed:
        raise unreadable_images(failed)
    columns: dict[str, object] = {"image": np.arange(len(rows)), "content": _hashes(kept)}
    if "label" in rows.column_names:
        columns["labels"] = rows.with_format(None)["label"][:]
    return Dataset.from_dict(columns), ImageCollator(scale, shift, torch.from_numpy(kept))


class _Loader:
    """A dataset's transform: decodes the images of a batch."""

    def __init__(self, column: str, maker: _Maker) -> None:
        self.column, self.maker = column, maker

    def __call__(self, batch: dict[str, list[object]]) -> dict[str, list[object]]:
        if self.column not in batch:  # only another column is asked for
            return batch
        made: dict[str, list[object]] = {  # one after the other: photographs are large
            "pixels": [
                self.maker.make([open_image(value, "a row", self.maker.grey)])[0]
                for value in batch[self.column]
            ]
        }
        return made | ({"labels": batch["label"]} if "label" in batch else {})


class _Maker:
    """A processor without its normalisation, which is done on batches where it can be.

    Attributes:
        grey: the model reads one channel.
    """

    def __init__(self, processor: object) -> None:
        self.processor: Any = processor  # its settings are attributes that no class declares
        self.grey = channels_of(processor) == 1
        self._size = _plain_size(processor)
        self._late = bool(getattr(processor, "do_rescale", False)) and self._normalises_plainly()

    def make(self, images: list[Image]) -> NDArray[np.generic]:
        """Images after resizing and cropping: uint8 [images, channels, height, width], or
        float32 where the processor does more with them than scale and shift."""
        if self._late and self._size is not None:
            return self._resized(images, *self._size)
        found = self._process(images, self._late)
        return np.rint(found).clip(0, 255).astype(np.uint8) if self._late else found

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Scale and shift that turn bytes into what the processor would give."""
        channels = channels_of(self.processor)
        factor = float(getattr(self.processor, "rescale_factor", None) or 1 / 255)
        mean, std = np.zeros(channels), np.ones(channels)
        if getattr(self.processor, "do_normalize", False):
            mean = np.broadcast_to(np.asarray(self.processor.image_mean, float), (channels,))
            std = np.broadcast_to(np.asarray(self.processor.image_std, float), (channels,))
        pair = (factor / std, -mean / std)
        scale, shift = (torch.tensor(value, dtype=torch.float32).view(-1, 1, 1) for value in pair)
        return scale, shift

    def _process(self, images: list[Image], late: bool) -> NDArray[np.float32]:
        options = {"do_rescale": False, "do_normalize": False} if late else {}
        try:
            found = self.processor(images, return_tensors="np", **options)["pixel_values"]
        except (ValueError, TypeError) as error:
            raise DataError(
                f"the image processor {type(self.processor).__name__} refuses images of "
                f"{images[0].size[0]}x{images[0].size[1]}: {first_line(error)}"
            ) from error
        return np.asarray(found, dtype=np.float32)

    def _normalises_plainly(self) -> bool:
        """Whether a picture of noise comes out the same by the processor's own arithmetic."""
        noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
        probe = [from_array(noise).convert("L" if self.grey else "RGB")]
        scale, shift = (part.numpy() for part in self.normalisation())
        late = np.rint(self._process(probe, True)) * scale + shift
        return bool(np.allclose(late, self._process(probe, False), atol=1e-4))

    def _resized(self, images: list[Image], size: tuple[int, int], resample: int) -> Pixels:
        """As the processor resizes, without its conversions of each image."""
        resized = [image if image.size == size else image.resize(size, resample)
                   for image in images]  # fmt: skip
        stacked = np.stack([np.asarray(image) for image in resized])
        return stacked[:, None] if self.grey else np.moveaxis(stacked, -1, 1)


def _plain_size(processor: object) -> tuple[tuple[int, int], int] | None:
    """Width and height, and the filter, of a processor that only resizes; None for another."""
    from transformers.image_processing_backends import PilBackend

    if not isinstance(processor, PilBackend):
        return None
    found: Any = processor
    kind = type(processor)
    own = ("resize", "_preprocess", "process_image", "preprocess")
    if any(getattr(kind, name) is not getattr(PilBackend, name) for name in own):
        return None
    size = found.size
    exact = size is not None and size.get("height") and size.get("width")
    more = any(getattr(processor, name, None) for name in ("do_center_crop", "do_pad"))
    if not exact or more or not found.do_resize or not isinstance(found.resample, int):
        return None
    return (size["width"], size["height"]), int(found.resample)


def _chunks(
    rows: Dataset, column: str, maker: _Maker, failed: list[UnreadableImageError]
) -> Iterator[NDArray[np.generic]]:
    images: list[Image] = []
    held = 0
    for image in _images(rows, column, maker.grey, failed):
        images.append(image)
        held += image.width * image.height
        if len(images) == _CHUNK or held > _CHUNK_PIXELS:
            yield maker.make(images)
            images, held = [], 0
    if images:
        yield maker.make(images)


def _images(
    rows: Dataset, column: str, grey: bool, failed: list[UnreadableImageError]
) -> Iterator[Image]:
    """Every image of a column, 8-bit grey or RGB; ``failed`` receives those that are none."""
    if is_array_column(rows, column):
        wanted = "L" if grey else "RGB"
        for chunk in array_chunks(rows, column):
            yield from (from_array(array).convert(wanted) for array in chunk)
        return
    for index, row in enumerate(undecoded(rows, column).select_columns(column)):
        try:
            yield open_image(row[column], f"row {index}", grey)
        except UnreadableImageError as error:
            failed.append(error)


def readable_rows(
    rows: Dataset, column: str, side: str, dropped: dict[str, int]
) -> tuple[Dataset, tuple[str, ...]]:
    """The rows whose image can be read, and a note that names those of the others.

    Args:
        rows: of one side.
        column: of images.
        side: for the reason in ``dropped``.
        dropped: receives how many rows were left out.
    """
    if is_array_column(rows, column):
        return rows, ()
    keep: list[int] = []
    failed: list[UnreadableImageError] = []
    for index, row in enumerate(undecoded(rows, column).select_columns(column)):
        try:
            open_image(row[column], f"row {index}")
            keep.append(index)
        except UnreadableImageError as error:
            failed.append(error)
    if not failed:
        return rows, ()
    dropped[f"{side}: unreadable image"] = len(failed)
    names = ", ".join(error.name for error in failed[:_NAMED])
    return rows.select(keep), (f"left out: {names}",)


def unreadable_images(failed: Sequence[UnreadableImageError]) -> DataError:
    """The error that names every image that cannot be read, up to 50 of them."""
    names = [f"{error.name} ({error.problem})" for error in failed[:_NAMED]]
    more = f" and {len(failed) - _NAMED:,} more" if len(failed) > _NAMED else ""
    what = "an image" if len(failed) == 1 else f"{len(failed):,} images"
    return DataError(
        f"data: {what} cannot be read; remove {'it' if len(failed) == 1 else 'them'} or set "
        f"data.skip_unreadable: true: {', '.join(names)}{more}"
    )


def undecoded(rows: Dataset, column: str) -> Dataset:
    """The rows with images as paths and bytes, so that an error can name the file."""
    if isinstance(rows.features[column], datasets.Image):
        return rows.cast_column(column, datasets.Image(decode=False))
    return rows


def _hashes(images: NDArray[np.generic]) -> list[str]:
    """Content hash of each image."""
    return [hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest() for image in images]


ARRAYS = (Array2D, Array3D)
# Rows read at a time: a few megabytes of small images.
_ARROW_ROWS = 4096


def array_dataset(images: Pixels, labels: Sequence[object], names: list[str] | None) -> Dataset:
    """A data set of images and labels.

    Args:
        images: uint8 [rows, height, width] or [rows, height, width, channels].
        labels: one a row.
        names: what the labels are called where they are class numbers; None leaves them values.
    """
    shape = images.shape[1:]
    kind = Array2DExtensionType if len(shape) == 2 else Array3DExtensionType
    column = pa.ExtensionArray.from_storage(kind(shape, "uint8"), _nested(images))
    data = Dataset(pa.table({"image": column, "label": pa.array(labels)}))
    return data.cast_column("label", ClassLabel(names=names)) if names else data


def _nested(images: Pixels) -> pa.Array:
    """The array as nested lists, Arrow's form of it."""
    nested = pa.array(np.ascontiguousarray(images).reshape(-1))
    length = images.size
    for size in reversed(images.shape[1:]):
        offsets = np.arange(0, length + 1, size, dtype=np.int64)
        nested = pa.LargeListArray.from_arrays(pa.array(offsets), nested)
        length //= size
    storage = pa.list_(pa.uint8())
    for _ in images.shape[2:]:
        storage = pa.list_(storage)
    return nested.cast(storage)


def is_array_column(rows: Dataset, column: str) -> bool:
    """Whether a column holds uint8 arrays of one size, as `array_dataset` makes them."""
    feature = rows.features[column]
    return isinstance(feature, ARRAYS) and feature.dtype == "uint8" and None not in feature.shape


def array_chunks(rows: Dataset, column: str) -> Iterator[Pixels]:
    """The images of a column, some thousand at a time: uint8 [rows, height, width(, channels)]."""
    feature = rows.features[column]
    plain = rows.select_columns(column).with_format("arrow")
    for start in range(0, len(rows), _ARROW_ROWS):
        values = plain[start : start + _ARROW_ROWS][column].combine_chunks()
        values = values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
        values = values.storage
        for _ in feature.shape:
            values = values.flatten()
        yield values.to_numpy(zero_copy_only=False).reshape(-1, *feature.shape)
