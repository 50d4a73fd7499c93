"""``load``: one way to use a quantized folder, whichever engine it was made for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcompress.config import nearest
from hfcompress.errors import DataError, ModelError
from hfcompress.quantization.config import MODES
from hfcompress.quantization.engine import Arrays, Engine, UsualShape
from hfcompress.quantization.model import read_labels, read_manifest
from hfcompress.quantization.onnx_export import IMAGE_INPUT
from hfcompress.quantization.pixels import make_pixels

Prediction = dict[str, Any]
Prepare = Callable[[Sequence[Any]], Arrays]


def load(
    directory: str | Path, threads: int | None = None, shape: tuple[int, int] | None = None
) -> Predictor:
    """Load a folder that ``quantize(...).save`` wrote::

        classify = hfcompress.load("sentiment")
        classify("a gripping film")                    # {"label": "positive", "score": 0.998}
        classify(["a gripping film", "a dull one"])    # a list of them

    Args:
        directory: the folder.
        threads: of one operation; None takes torch's number. torch has one number of threads
            for the whole process (``torch.set_num_threads``).
        shape: examples and tokens of the usual batch. OpenVINO has a form for that shape alone,
            which is faster (for one short text by a third) and takes as much memory again; what
            is smaller is padded to it, what is larger is computed as ever. The other engines
            do without.

    Raises:
        ModelError: no folder of ours, labels missing, or a model that the engine refuses.
        ConfigError: a shape that is none.
        MissingExtraError: the engine is not installed; the message holds the pip command.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    backend, labels = manifest["backend"], read_labels(directory)
    if backend not in MODES:
        raise ModelError(f"{directory}: there is no backend {backend!r}{nearest(backend, MODES)}")
    module: Any = importlib.import_module(f"hfcompress.quantization.backends.{backend}")
    engine = module.load_engine(directory, threads)
    return Predictor(engine, labels, _prepare(directory, manifest), manifest, shape)


class Predictor:
    """Texts (or images) in, labels and scores out, as ``transformers.pipeline`` gives them.

    Args:
        engine: computes logits.
        labels: names in order.
        prepare: raw examples -> what the engine reads; None where the folder has no processor.
        manifest: what the folder says of itself.
        shape: examples and tokens of the usual batch, as in `load`.

    Raises:
        ConfigError: a shape that is none.
    """

    def __init__(
        self,
        engine: Engine,
        labels: Sequence[str],
        prepare: Prepare | None,
        manifest: Mapping[str, Any],
        shape: tuple[int, int] | None = None,
    ) -> None:
        self.engine, self.labels, self.manifest = engine, tuple(labels), dict(manifest)
        self._prepare = prepare
        pad_id = int(self.manifest.get("text", {}).get("pad_id", 0))
        self._usual = None if shape is None else UsualShape(engine, shape, pad_id)

    def __call__(
        self, examples: Any, top_k: int | None = 1, batch_size: int = 32
    ) -> Prediction | list[Prediction] | list[list[Prediction]]:
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
        one = not isinstance(examples, list)
        rows: list[Any] = [examples] if one else examples
        found: list[Any] = [self._ranked(row, top_k) for row in self.scores(rows, batch_size)]
        return found[0] if one else found

    def scores(self, examples: Sequence[Any], batch_size: int = 32) -> NDArray[np.float32]:
        """Scores of every label, [examples, labels].

        Raises:
            DataError: as when called.
        """
        if self._prepare is None:
            raise DataError(
                "the folder holds no tokenizer or image processor; save the model with one, or "
                "call logits with input_ids and attention_mask"
            )
        if not len(examples):
            raise DataError("there is nothing to classify; give at least one text")
        parts = [
            self.logits(self._prepare(examples[start : start + batch_size]))
            for start in range(0, len(examples), batch_size)
        ]
        logits = np.concatenate(parts)
        if logits.shape[1] == 1:
            return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(chances / chances.sum(axis=1, keepdims=True), np.float32)

    def logits(self, arrays: Arrays) -> NDArray[np.float32]:
        """Logits of one batch of ``input_ids`` and the like, int64 [batch, length]."""
        if self._usual is not None and self._usual.takes(arrays):
            return self._usual.logits(arrays)
        return self.engine.logits(arrays)

    def _ranked(self, scores: NDArray[np.float32], top_k: int | None) -> Any:
        order = np.argsort(-scores, kind="stable")[:top_k]
        ranked = [{"label": self.labels[i], "score": float(scores[i])} for i in order]
        return ranked[0] if top_k == 1 else ranked


def _prepare(directory: Path, manifest: Mapping[str, Any]) -> Prepare | None:
    if "text" in manifest:
        return _text_reader(directory / "tokenizer.json", manifest["text"])
    if IMAGE_INPUT not in manifest["inputs"]:
        return None
    if "image" in manifest:
        return _image_reader(partial(make_pixels, settings=manifest["image"]))
    if (directory / "preprocessor_config.json").is_file():
        return _image_reader(_processor(directory))
    return None


def _text_reader(file: Path, settings: Mapping[str, Any]) -> Prepare:
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

    def read(texts: Sequence[Any]) -> Arrays:
        rows = tokenizer.encode_batch(list(texts))
        return {
            "input_ids": np.array([row.ids for row in rows], np.int64),
            "attention_mask": np.array([row.attention_mask for row in rows], np.int64),
            "token_type_ids": np.array([row.type_ids for row in rows], np.int64),
        }

    return read


def _processor(directory: Path) -> Callable[[Sequence[Any]], NDArray[Any]]:
    """The saved image processor, for folders whose images are made in a way of their own."""
    from transformers import AutoImageProcessor

    loader: Any = AutoImageProcessor
    processor = loader.from_pretrained(directory, backend="pil")

    def make(images: Sequence[Any]) -> NDArray[Any]:
        coloured = [image.convert("RGB") for image in images]
        return np.asarray(processor(coloured, return_tensors="np")[IMAGE_INPUT])

    return make


def _image_reader(make: Callable[[Sequence[Any]], NDArray[Any]]) -> Prepare:
    def read(images: Sequence[Any]) -> Arrays:
        return {IMAGE_INPUT: make([_opened(item) for item in images])}

    return read


def _opened(item: Any) -> Any:
    """An image file, or an image in memory, upright and of 8 bits.

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
