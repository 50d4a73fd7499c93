"""Examples as callers have them -> batches of the arrays that an engine reads.

Callers have a text, a list, a tuple, a pandas Series, an array, a column of ``datasets`` or a
generator. A pair of texts is a tuple of two inside such a container, or a text and its
``text_pair``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from hfcompress.errors import DataError, ModelError, first_line
from hfcompress.quantization.engine import Arrays
from hfcompress.quantization.images import IMAGE_INPUT
from hfcompress.quantization.manifest import TextSettings
from hfcompress.quantization.pixels import Pixels

if TYPE_CHECKING:
    from PIL.Image import Image
    from tokenizers import Tokenizer
    from transformers import BaseImageProcessor

Text: TypeAlias = str | tuple[str, str]
Row: TypeAlias = object
"""One example as the caller gave it, or as `Preparation.rows` checked it."""


class Preparation(Protocol):
    """Turns examples into batches."""

    def rows(self, examples: object, text_pair: object = None) -> tuple[Iterable[Row], bool]:
        """Return the examples one by one, and whether the caller gave one alone.

        Raises:
            DataError: something that is not an example; the sentence names its place.
        """
        ...

    def __call__(self, rows: list[Row]) -> Arrays:
        """Return one batch of arrays.

        Raises:
            DataError: an example that cannot be read.
        """
        ...


def chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Yield the rows in lists of at most ``size``."""
    iterator = iter(rows)
    while part := list(islice(iterator, size)):
        yield part


# --- texts -------------------------------------------------------------------------------------


class TextPreparation:
    """Encodes texts and pairs of texts as the saved tokenizer does.

    Args:
        file: ``tokenizer.json``.
        settings: what the file does not say.

    Raises:
        ModelError: the file cannot be read.
    """

    def __init__(self, file: Path, settings: TextSettings) -> None:
        from tokenizers import Tokenizer

        try:
            tokenizer: Tokenizer = Tokenizer.from_file(str(file))
            self._set(tokenizer, settings)
        except Exception as error:  # tokenizers raises bare exceptions
            raise ModelError(f"{file} cannot be read ({error}); save the model again") from None
        self._tokenizer = tokenizer
        self._inputs = settings.get("inputs")

    @property
    def plain_tokenizer(self) -> Tokenizer:
        """A copy of the tokenizer without truncation and padding."""
        from tokenizers import Tokenizer

        plain: Tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        plain.no_truncation()
        plain.no_padding()
        plain.encode_special_tokens = self._tokenizer.encode_special_tokens
        return plain

    @staticmethod
    def _set(tokenizer: Tokenizer, settings: TextSettings) -> None:
        tokenizer.enable_truncation(
            settings["max_length"], direction=settings.get("truncation_side", "right")
        )
        tokenizer.enable_padding(
            direction=settings["padding_side"],
            pad_id=settings["pad_id"],
            pad_type_id=settings.get("pad_type_id", 0),
            pad_token=settings["pad_token"],
        )
        tokenizer.encode_special_tokens = settings.get("split_special_tokens", False)

    def rows(self, examples: object, text_pair: object = None) -> tuple[list[Row], bool]:
        """Return texts and pairs of texts; see `Preparation.rows`."""
        given, single = _texts(examples)
        if text_pair is None:
            return [_text(row, place) for place, row in enumerate(given)], single
        seconds, single_second = _texts(text_pair)
        if (len(given), single) != (len(seconds), single_second):
            raise DataError(
                f"there are {len(given)} texts and {len(seconds)} in text_pair; give one second "
                f"text for each text"
            )
        pairs = zip(given, seconds, strict=True)
        return [
            _text((first, second), place) for place, (first, second) in enumerate(pairs)
        ], single

    def __call__(self, rows: list[Row]) -> Arrays:
        """Return ``input_ids``, ``attention_mask`` and ``token_type_ids``, as far as the tokenizer
        gives them."""
        try:
            encoded = self._tokenizer.encode_batch(rows)
        except (TypeError, ValueError) as error:  # half a character (a lone surrogate)
            raise DataError(
                f"a text cannot be encoded ({first_line(error)}); remove what is not Unicode"
            ) from None
        arrays = {
            "input_ids": np.array([row.ids for row in encoded], np.int64),
            "attention_mask": np.array([row.attention_mask for row in encoded], np.int64),
            "token_type_ids": np.array([row.type_ids for row in encoded], np.int64),
        }
        if self._inputs is None:
            return arrays
        return {name: array for name, array in arrays.items() if name in self._inputs}


def _texts(given: object) -> tuple[list[object], bool]:
    """Return the members of a container, or the one text itself, and whether it was one."""
    if isinstance(given, np.ndarray) and given.ndim == 0:
        given = given.item()
    if isinstance(given, (str, Mapping)):
        return [given], True
    _refuse_tables(given)
    if isinstance(given, Iterable) and not isinstance(given, (bytes, bytearray)):
        return list(given), False
    raise DataError(f"{_what(given)} is not a text; give a text, or a list of texts")


def _refuse_tables(given: object) -> None:
    if hasattr(given, "iloc") and hasattr(given, "columns"):
        raise DataError(
            "a DataFrame has several columns; give one of them, such as frame['text'], and a "
            "second one as text_pair"
        )
    if isinstance(given, (set, frozenset)):
        raise DataError("a set has no order; give a list")


def _text(row: object, place: int) -> Text:
    if isinstance(row, str):
        return str(row)
    if isinstance(row, Mapping) and {"text"} <= set(row) <= {"text", "text_pair"}:
        pair = row.get("text_pair")
        row = row["text"] if pair is None else (row["text"], pair)
        if isinstance(row, str):
            return str(row)
    if isinstance(row, tuple) and len(row) == 2:
        first, second = row
        if isinstance(first, str) and isinstance(second, str):
            return str(first), str(second)
        row = first if not isinstance(first, str) else second
    raise DataError(
        f"example {place} is {_what(row)}; give a text, or a tuple of two texts for a pair"
    )


def _what(value: object) -> str:
    """Return a short description of something that is not an example."""
    if value is None or isinstance(value, (bool, int, float, np.generic)):
        missing = isinstance(value, float) and math.isnan(value)
        return "NaN" if missing else repr(value)
    if isinstance(value, Mapping):
        return f"a dict with the keys {sorted(map(str, value))}"
    article = "an" if type(value).__name__[0].lower() in "aeiou" else "a"
    size = f" of {len(value)}" if isinstance(value, (list, tuple)) else ""
    return f"{article} {type(value).__name__}{size}"


# --- images ------------------------------------------------------------------------------------


class ImagePreparation:
    """Reads images and makes the pixels that the saved image processor makes.

    Args:
        make: upright images -> pixels.
    """

    def __init__(self, make: Callable[[list[Image]], Pixels]) -> None:
        self._make = make

    def rows(self, examples: object, text_pair: object = None) -> tuple[Iterable[Row], bool]:
        """Return paths and images; see `Preparation.rows`."""
        if text_pair is not None:
            raise DataError("this model reads images, which have no text_pair; leave it out")
        if _is_image(examples):
            return [_image(examples, 0)], True
        _refuse_tables(examples)
        if not isinstance(examples, Iterable):
            raise DataError(
                f"{_what(examples)} is not an image; give a path, an image, or a list of them"
            )
        return (_image(row, place) for place, row in enumerate(examples)), False

    def __call__(self, rows: list[Row]) -> Arrays:
        """Return ``pixel_values``."""
        return {IMAGE_INPUT: self._make([open_example(row) for row in rows])}


class SavedProcessor:
    """Makes pixels with the image processor of a folder, if `make_pixels` cannot reproduce it.

    Args:
        folder: with ``preprocessor_config.json``.

    Attributes:
        processor: what it has loaded.

    Raises:
        ModelError: the processor cannot be loaded; code of the folder is not run.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor

        try:
            self.processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]  # nosec B615
                folder, backend="pil", trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # a damaged file raises many kinds
            raise ModelError(
                f"the image processor in {str(folder)!r} cannot be loaded ({first_line(error)}); "
                f"save the model again"
            ) from None

    def __call__(self, images: list[Image]) -> Pixels:
        """Return float32 [images, channels, height, width]."""
        coloured = [image.convert("RGB") for image in images]
        return np.asarray(self.processor(coloured, return_tensors="np")[IMAGE_INPUT])


def _is_image(given: object) -> bool:
    """Return whether something is one image instead of a container of images."""
    from PIL.Image import Image

    if isinstance(given, (str, Path, bytes, Mapping, Image)):
        return True
    sizes = getattr(given, "shape", None)  # of an array or a tensor
    objects = str(getattr(given, "dtype", "")) == "object"
    return sizes is not None and not objects and 2 <= len(sizes) <= 3


def _image(row: object, place: int) -> Row:
    if row is None or isinstance(row, (bool, int, float, np.generic)):
        raise DataError(f"example {place} is {_what(row)}; give a path or an image")
    return row


def open_example(item: object) -> Image:
    """Open an image file, or take an image in memory, upright and with 8 bits a value.

    Raises:
        DataError: no such file, or not an image; the sentence names it.
    """
    from hfcompress.data.images import open_image

    if not isinstance(item, (str, Path)):
        return open_image(item, "an image in memory")
    path = Path(item)
    if not path.is_file():
        raise DataError(f"there is no image file {str(path)!r}")
    return open_image({"path": str(path)}, str(path))
