"""``load``: use a folder of a quantized model, whichever engine it was made for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from hfcompress.config import nearest
from hfcompress.errors import DataError, ModelError
from hfcompress.quantization.backends import import_backend
from hfcompress.quantization.config import MODES
from hfcompress.quantization.engine import Arrays, Engine, StaticShape
from hfcompress.quantization.manifest import Manifest, TextSettings, read_labels, read_manifest
from hfcompress.quantization.onnx_export import IMAGE_INPUT
from hfcompress.quantization.pixels import Pixels, make_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

Prepare = Callable[[Sequence[object]], Arrays]
"""Raw examples -> one batch of the arrays that an engine reads."""


class LabelScore(TypedDict):
    """A label and its score, as ``transformers.pipeline`` gives them."""

    label: str
    score: float


def load(
    directory: str | Path, threads: int | None = None, shape: tuple[int, int] | None = None
) -> Predictor:
    """Load a folder that ``quantize(...).save`` wrote::

        classify = hfcompress.load("sentiment")
        classify("a gripping film")                    # {"label": "positive", "score": 0.998}
        classify(["a gripping film", "a dull one"])    # a list of them

    Args:
        directory: the folder.
        threads: threads of one operation; None takes torch's number. torch has one number of
            threads for the whole process (``torch.set_num_threads``).
        shape: examples and tokens of the usual batch. OpenVINO compiles the model a second time
            for that static shape, which is faster (a third for one short text) and doubles the
            memory; smaller batches are padded to it, larger ones run in the dynamic shape. The
            other engines ignore it.

    Raises:
        ModelError: not a folder of a quantized model, labels missing, or a model that the engine
            refuses.
        ConfigError: a size of the shape is below 1.
        MissingExtraError: the engine is not installed; the message holds the pip command.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    backend, labels = manifest["backend"], read_labels(directory)
    if backend not in MODES:
        raise ModelError(f"{directory}: unknown backend {backend!r}{nearest(backend, MODES)}")
    engine = import_backend(backend).load_engine(directory, threads)
    return Predictor(engine, labels, _preparation(directory, manifest), manifest, shape)


class Predictor:
    """Texts (or images) in, labels and scores out, as ``transformers.pipeline`` gives them.

    Args:
        engine: computes logits.
        labels: names in order.
        prepare: raw examples -> the engine's inputs; None if the folder has no processor.
        manifest: the folder's `Manifest`.
        shape: examples and tokens of the usual batch, as in `load`.

    Raises:
        ConfigError: a size of the shape is below 1.
    """

    def __init__(
        self,
        engine: Engine,
        labels: Sequence[str],
        prepare: Prepare | None,
        manifest: Manifest,
        shape: tuple[int, int] | None = None,
    ) -> None:
        self.engine, self.labels, self.manifest = engine, tuple(labels), manifest
        self._prepare = prepare
        pad_id = manifest["text"]["pad_id"] if "text" in manifest else 0
        self._static = None if shape is None else StaticShape(engine, shape, pad_id)

    def __call__(
        self, examples: object, top_k: int | None = 1, batch_size: int = 32
    ) -> LabelScore | list[LabelScore] | list[LabelScore | list[LabelScore]]:
        """Classify.

        Args:
            examples: one text or a list of them; a pair of texts is a tuple. For a model of
                images: a path or an image, or a list of them.
            top_k: how many labels for each example; 1 gives the best alone, None all of them.
            batch_size: examples computed together.

        Returns:
            ``{"label": ..., "score": ...}`` for one example, a list of them for a list; a list
            for each example where ``top_k`` is not 1. Scores are the softmax of the logits (the
            sigmoid of a single one).

        Raises:
            DataError: no examples, or a folder without tokenizer or image processor.
        """
        if isinstance(examples, list):
            return [self._ranked(row, top_k) for row in self.scores(examples, batch_size)]
        return self._ranked(self.scores([examples], batch_size)[0], top_k)

    def scores(self, examples: Sequence[object], batch_size: int = 32) -> NDArray[np.float32]:
        """Return the scores of every label, [examples, labels].

        Raises:
            DataError: as when called.
        """
        if self._prepare is None:
            raise DataError(
                "the folder has no tokenizer or image processor; save the model with one, or "
                "call logits with input_ids and attention_mask"
            )
        if not len(examples):
            raise DataError("nothing to classify; give at least one text")
        parts = [
            self.logits(self._prepare(examples[start : start + batch_size]))
            for start in range(0, len(examples), batch_size)
        ]
        logits = np.concatenate(parts)
        if logits.shape[1] == 1:
            return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)

    def logits(self, arrays: Arrays) -> NDArray[np.float32]:
        """Return the logits of one batch of ``input_ids`` and the like, int64 [batch, length]."""
        if self._static is not None and self._static.fits(arrays):
            return self._static.logits(arrays)
        return self.engine.logits(arrays)

    def _ranked(
        self, scores: NDArray[np.float32], top_k: int | None
    ) -> LabelScore | list[LabelScore]:
        order = np.argsort(-scores, kind="stable")[:top_k]
        ranked = [LabelScore(label=self.labels[i], score=float(scores[i])) for i in order]
        return ranked[0] if top_k == 1 else ranked


def _preparation(directory: Path, manifest: Manifest) -> Prepare | None:
    """What turns raw examples into the engine's inputs; None if the folder has no processor."""
    if "text" in manifest:
        return _text_preparation(directory / "tokenizer.json", manifest["text"])
    if IMAGE_INPUT not in manifest["inputs"]:
        return None
    if "image" in manifest:
        return _image_preparation(partial(make_pixels, settings=manifest["image"]))
    if (directory / "preprocessor_config.json").is_file():
        return _image_preparation(_saved_processor(directory))
    return None


def _text_preparation(file: Path, settings: TextSettings) -> Prepare:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare exceptions
        raise ModelError(f"{file} cannot be read ({error}); save the model again") from None
    tokenizer.enable_truncation(settings["max_length"])
    tokenizer.enable_padding(
        direction=settings["padding_side"],
        pad_id=settings["pad_id"],
        pad_token=settings["pad_token"],
    )

    def prepare(texts: Sequence[object]) -> Arrays:
        rows = tokenizer.encode_batch(list(texts))
        return {
            "input_ids": np.array([row.ids for row in rows], np.int64),
            "attention_mask": np.array([row.attention_mask for row in rows], np.int64),
            "token_type_ids": np.array([row.type_ids for row in rows], np.int64),
        }

    return prepare


def _saved_processor(directory: Path) -> Callable[[Sequence[Image]], Pixels]:
    """The image processor of a folder, for those that `make_pixels` cannot reproduce."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(directory, backend="pil")  # type: ignore[no-untyped-call]

    def make(images: Sequence[Image]) -> Pixels:
        coloured = [image.convert("RGB") for image in images]
        return np.asarray(processor(coloured, return_tensors="np")[IMAGE_INPUT])

    return make


def _image_preparation(make: Callable[[Sequence[Image]], Pixels]) -> Prepare:
    def prepare(images: Sequence[object]) -> Arrays:
        return {IMAGE_INPUT: make([_open(item) for item in images])}

    return prepare


def _open(item: object) -> Image:
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
