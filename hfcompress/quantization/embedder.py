"""``Embedder``: texts in, vectors out, whichever the engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from hfcompress.config import nearest
from hfcompress.errors import ConfigError, DataError, ModelError
from hfcompress.measure.ranking import unit_vectors
from hfcompress.measure.vectors import (
    EmbeddingConfig,
    Precision,
    Stored,
    read_vectors,
    store_vectors,
)
from hfcompress.models.embedding_layout import EmbeddingLayout, read_layout
from hfcompress.quantization.backends import import_backend
from hfcompress.quantization.engine import Engine
from hfcompress.quantization.manifest import (
    MANIFEST,
    Manifest,
    TextSettings,
    check_digests,
    read_manifest,
)
from hfcompress.quantization.predictor import Predictor, check_engine_inputs, find_preparation
from hfcompress.quantization.preparation import Preparation, TextPreparation

if TYPE_CHECKING:  # they import transformers
    from hfcompress.quantization.backends.torch import TorchEngine
    from hfcompress.quantization.inputs import Classifier


_STATIC_INPUTS = ("input_ids", "attention_mask")
_NO_LIMIT = 10**6


class Embedder(Predictor):
    """Encodes texts as ``SentenceTransformer.encode`` does.

    It can be pickled: an engine takes its files along.

    Args:
        engine: computes vectors.
        prepare: texts -> the engine's inputs; None where the folder has no tokenizer.
        manifest: the folder's `Manifest`.
        layout: of the folder; it names the prompts.
        stored: how vectors are given where a call does not say otherwise.
        shape: examples and tokens of the usual batch, as in `hfcompress.load`.

    Raises:
        ConfigError: a size of the shape is below 1.
    """

    def __init__(
        self,
        engine: Engine,
        prepare: Preparation | None,
        manifest: Manifest,
        layout: EmbeddingLayout,
        stored: EmbeddingConfig | None = None,
        shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(engine, (), prepare, manifest, shape)
        self.layout, self.stored = layout, stored or EmbeddingConfig()

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
        """Return a vector for each text.

        Args:
            texts: one text, or a list, tuple, array, column or generator of texts.
            batch_size: texts computed together; they are sorted by length first.
            prompt: text that is put before each of them.
            prompt_name: one of the folder's prompts; its default prompt where neither is given.
            dimensions: keep the first values only.
            precision: float32, int8 (the cosine of the integers is that of the vectors) or binary.

        Returns:
            [size] for one text, [texts, size] for a container.

        Raises:
            ConfigError: a batch size below 1, an unknown prompt, or more dimensions than there are.
            DataError: no texts, something that is not a text, or a folder without tokenizer.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size!r}; give a number from 1")
        if self._prepare is None:
            raise DataError(
                "the folder has no tokenizer; save the model with one, or call logits with "
                "input_ids and attention_mask"
            )
        config = EmbeddingConfig(
            dimensions=dimensions or self.stored.dimensions,
            precision=precision or self.stored.precision,
        )
        rows, single = self._prepare.rows(texts)
        asked = [_with_prompt(row, self._prompt(prompt, prompt_name)) for row in rows]
        if not asked:
            raise DataError("nothing to encode; give at least one text")
        vectors: NDArray[np.float32] | None = None
        order = sorted(range(len(asked)), key=lambda place: -len(asked[place]))
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            part = self.logits(self._prepare([asked[place] for place in places]))
            if vectors is None:
                vectors = np.empty((len(asked), part.shape[1]), np.float32)
            vectors[places] = part
        assert vectors is not None
        if self.layout.normalize and config.dimensions is not None:
            vectors = unit_vectors(vectors[:, : config.dimensions])
        stored = store_vectors(vectors, config)
        return stored[0] if single else stored

    def similarity(self, first: object, second: object) -> NDArray[np.float32]:
        """Return the cosines of texts with texts, [first texts, second texts].

        Args:
            first, second: texts as `encode` takes them.
        """
        sides = []
        for texts in (first, second):
            vectors = np.atleast_2d(self.encode(texts, precision="float32"))
            stored = store_vectors(vectors.astype(np.float32, copy=False), self._cut)
            sides.append(unit_vectors(read_vectors(stored, self._cut, vectors.shape[1])))
        cosines: NDArray[np.float32] = sides[0] @ sides[1].T
        return cosines

    def _scores(
        self, examples: object, text_pair: object, batch_size: int
    ) -> tuple[NDArray[np.float32], bool]:
        raise ModelError("this model gives a vector for each text, not labels; call encode(texts)")

    @property
    def _cut(self) -> EmbeddingConfig:
        """How vectors are stored whose dimensions are cut already."""
        return EmbeddingConfig(precision=self.stored.precision)

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        if prompt is not None:
            return prompt
        if name is None:
            return self.layout.default_prompt
        if name not in self.layout.prompts:
            known = list(self.layout.prompts)
            raise ConfigError(f"the model has no prompt {name!r}{nearest(name, known)}")
        return self.layout.prompts[name]


def _with_prompt(row: object, prompt: str) -> str:
    if not isinstance(row, str):
        raise DataError("a pair is not a text; encode takes single texts")
    return prompt + row


def load_embedder(
    directory: Path, threads: int | None = None, shape: tuple[int, int] | None = None
) -> Embedder:
    """Return the embedder of a folder that ``quantize(...).save`` wrote, or of one with torch
    weights that ``save_pretrained`` or sentence-transformers wrote.

    Args:
        directory, threads, shape: as `hfcompress.load`.

    Raises:
        ModelError: a pooling that the folder does not say, or files that cannot be read.
    """
    from hfcompress.quantization.model import read_text_settings

    layout = read_layout(directory)
    if layout.static:
        return _static_embedder(directory, layout)
    if (directory / MANIFEST).is_file():
        manifest = read_manifest(directory)
        check_digests(directory, manifest, descriptions=False)
        engine = import_backend(manifest["backend"]).load_engine(directory, threads)
        check_engine_inputs(directory, manifest, engine)
        check_digests(directory, manifest, descriptions=True)
        return Embedder(
            engine, find_preparation(directory, manifest), manifest, layout, None, shape
        )
    torch_engine = cast("TorchEngine", import_backend("torch").load_engine(directory))
    settings = read_text_settings(directory, torch_engine.model)
    manifest = cast(Manifest, {"inputs": list(torch_engine.inputs), "text": settings})
    prepare = TextPreparation(directory / "tokenizer.json", settings)
    return Embedder(torch_engine, prepare, manifest, layout)


def _static_embedder(directory: Path, layout: EmbeddingLayout) -> Embedder:
    """Return the embedder of a table of token vectors, in torch."""
    from hfcompress.models.static_embedding import (
        FOLDER,
        TOKENIZER,
        StaticEmbedder,
        padding_of,
    )
    from hfcompress.quantization.backends.torch import TorchEngine

    model = StaticEmbedder.from_pretrained(directory, layout)
    engine = TorchEngine(cast("Classifier", model), _STATIC_INPUTS)
    pad_id, pad_token = padding_of(directory)
    settings: TextSettings = {
        "max_length": _NO_LIMIT,
        "pad_id": pad_id,
        "pad_token": pad_token,
        "padding_side": "right",
        "inputs": list(_STATIC_INPUTS),
    }
    prepare = TextPreparation(directory / FOLDER / TOKENIZER, settings)
    manifest = cast(Manifest, {"inputs": list(_STATIC_INPUTS), "text": settings})
    return Embedder(engine, prepare, manifest, layout)
