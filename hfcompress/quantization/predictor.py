"""``Predictor``: texts or images in, labels and scores out, whichever the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hfcompress.errors import ConfigError, DataError, ModelError
from hfcompress.measure.vectors import Precision, Stored
from hfcompress.quantization.engine import Arrays, Engine, StaticShape
from hfcompress.quantization.manifest import Manifest, padding_id
from hfcompress.quantization.onnx_export import IMAGE_INPUT
from hfcompress.quantization.pixels import make_pixels
from hfcompress.quantization.preparation import (
    ImagePreparation,
    Preparation,
    SavedProcessor,
    TextPreparation,
    chunks,
)
from hfcompress.tasks.outputs import LabelScore, OutputKind, label_scores, ranked_labels


class Predictor:
    """Texts (or images) in, labels and scores out, as ``transformers.pipeline`` gives them.

    It can be pickled: an engine takes its files along.

    Args:
        engine: computes logits.
        labels: names in order.
        prepare: raw examples -> the engine's inputs; None if the folder has no processor.
        manifest: the folder's `Manifest`.
        shape: examples and tokens of the usual batch, as in `load`.
        kind: what the logits mean; it decides the scores.

    Raises:
        ConfigError: a size of the shape is below 1.
    """

    def __init__(
        self,
        engine: Engine,
        labels: Sequence[str],
        prepare: Preparation | None,
        manifest: Manifest,
        shape: tuple[int, int] | None = None,
        kind: OutputKind = "classification",
    ) -> None:
        self.engine, self.labels, self.manifest = engine, tuple(labels), manifest
        self.kind = kind
        self._prepare = prepare
        pad_id = padding_id(manifest)
        self._static = None if shape is None else StaticShape(engine, shape, pad_id)

    def __call__(
        self,
        examples: object,
        top_k: int | None = 1,
        batch_size: int = 32,
        *,
        text_pair: object = None,
    ) -> LabelScore | list[LabelScore] | list[LabelScore | list[LabelScore]]:
        """Classify.

        Args:
            examples: one text, or a list, tuple, array, column or generator of texts; a pair is a
                tuple of two texts inside it. For a model of images: paths or images.
            top_k: how many labels for each example; 1 gives the best alone, None all of them.
            batch_size: examples computed together.
            text_pair: the second text, or as many of them as there are examples.

        Returns:
            ``{"label": ..., "score": ...}`` for one example, a list of them for a container; a
            list for each example where ``top_k`` is not 1. Scores are the softmax of the logits;
            the sigmoid of each for several labels and for a single logit; the number itself for a
            regression.

        Raises:
            ConfigError: ``top_k`` or ``batch_size`` below 1.
            DataError: no examples, something that is not an example, or a folder without tokenizer
                or image processor.
        """
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ConfigError(f"top_k is {top_k!r}; give a number from 1, or None for all labels")
        scores, single = self._scores(examples, text_pair, batch_size)
        rows = [ranked_labels(row, self.labels, top_k) for row in scores]
        if single:
            return rows[0][0] if top_k == 1 else rows[0]
        return [row[0] if top_k == 1 else row for row in rows]

    def scores(
        self, examples: object, batch_size: int = 32, *, text_pair: object = None
    ) -> NDArray[np.float32]:
        """Return the scores of every label, [examples, labels].

        Raises:
            ConfigError, DataError: as when called.
        """
        return self._scores(examples, text_pair, batch_size)[0]

    def logits(self, arrays: Mapping[str, object]) -> NDArray[np.float32]:
        """Return the logits of one batch of ``input_ids`` and the like, int64 [batch, length]."""
        batch: Arrays = {name: np.asarray(value) for name, value in arrays.items()}
        if self._static is not None and self._static.fits(batch):
            return self._static.logits(batch)
        return self.engine.logits(batch)

    def encode(
        self,
        texts: object,
        batch_size: int = 32,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        dimensions: int | None = None,
        precision: Precision | None = None,
    ) -> Stored:
        """Return a vector for each text; see `hfcompress.quantization.embedder.Embedder`.

        Raises:
            ModelError: the model gives labels.
        """
        raise ModelError(
            f"this model gives the labels {', '.join(self.labels[:3])}, not vectors; call it with "
            f"texts, or load the folder of an embedding model"
        )

    def _scores(
        self, examples: object, text_pair: object, batch_size: int
    ) -> tuple[NDArray[np.float32], bool]:
        if self._prepare is None:
            raise DataError(
                "the folder has no tokenizer or image processor; save the model with one, or "
                "call logits with input_ids and attention_mask"
            )
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size!r}; give a number from 1")
        rows, single = self._prepare.rows(examples, text_pair)
        parts = [self.logits(self._prepare(part)) for part in chunks(rows, batch_size)]
        if not parts:
            raise DataError("nothing to classify; give at least one example")
        logits = np.concatenate(parts)
        if logits.ndim != 2 or logits.shape[1] != len(self.labels):
            raise ModelError(
                f"the model gives logits of shape {logits.shape} and config.json names "
                f"{len(self.labels)} labels; the files belong to different models, save it again"
            )
        return label_scores(logits, self.kind), single


def check_engine_inputs(directory: Path, manifest: Manifest, engine: Engine) -> None:
    """Refuse an engine that reads other inputs than the folder's record names.

    Raises:
        ModelError: it does.
    """
    if set(engine.inputs) != set(manifest["inputs"]):
        raise ModelError(
            f"the model in {str(directory)!r} reads {', '.join(engine.inputs)} and its record "
            f"names {', '.join(manifest['inputs'])}; the files belong to different models, save it "
            f"again"
        )


def find_preparation(directory: Path, manifest: Manifest) -> Preparation | None:
    """Return what turns examples into the engine's inputs; None without a saved processor."""
    if "text" in manifest:
        return TextPreparation(directory / "tokenizer.json", manifest["text"])
    if IMAGE_INPUT not in manifest["inputs"]:
        return None
    if "image" in manifest:
        return ImagePreparation(partial(make_pixels, settings=manifest["image"]))
    if (directory / "preprocessor_config.json").is_file():
        return ImagePreparation(SavedProcessor(directory))
    return None
