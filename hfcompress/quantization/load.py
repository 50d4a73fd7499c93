"""``load``: use a folder of a quantized model, whichever engine it was made for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from hfcompress.models.cross_encoder import is_cross_encoder, is_cross_encoder_folder
from hfcompress.models.download import local_folder
from hfcompress.models.embedding_layout import has_layout
from hfcompress.models.outputs import BY_PLACE
from hfcompress.quantization.backends import import_backend
from hfcompress.quantization.manifest import (
    MANIFEST,
    check_digests,
    read_labels,
    read_manifest,
    read_output_kind,
)
from hfcompress.quantization.predictor import Predictor, check_engine_inputs, find_preparation


def load(
    directory: str | Path, threads: int | None = None, shape: tuple[int, int] | None = None
) -> Predictor:
    """Load a folder that ``quantize(...).save`` wrote; no code of the folder is run::

        classify = hfcompress.load("sentiment")
        classify("a gripping film")                    # {"label": "positive", "score": 0.998}
        classify(["a gripping film", "a dull one"])    # a list of them
        hfcompress.load("embeddings").encode(texts)    # vectors, of an embedding model's folder
        hfcompress.load("reranker").predict(pairs)     # scores, of a reranker's folder
        hfcompress.load("reader")(question="Who?", context="Ada did.")    # an answer
        hfcompress.load("backbone")("a [MASK] film")   # the likeliest tokens
        hfcompress.load("segmenter").predict("photo.jpg")    # a mask for each label

    Args:
        directory: the folder, or its name on the hub (``org/name``, ``org/name@REVISION``).
        threads: threads of one operation; None takes torch's number. torch has one number of
            threads for the whole process (``torch.set_num_threads``).
        shape: examples and tokens of the usual batch. OpenVINO compiles the model a second time
            for that static shape, which is faster (a third for one short text) and doubles the
            memory; smaller batches are padded to it, larger ones run in the dynamic shape. The
            other engines ignore it.

    Raises:
        SourceError: a name that is neither a folder nor on the hub.
        ModelError: not a folder of a quantized model, labels missing, files that do not match the
            record, or a model that the engine cannot load.
        ConfigError: a size of the shape is below 1.
        MissingExtraError: the engine is not installed; the message holds the pip command.
    """
    directory = local_folder(directory)
    if is_cross_encoder_folder(directory) or _is_reranker(directory):
        from hfcompress.quantization.reranker import load_checkpoint_reranker

        return load_checkpoint_reranker(directory, shape)
    if has_layout(directory):
        from hfcompress.quantization.embedder import load_embedder

        return load_embedder(directory, threads, shape)
    manifest = read_manifest(directory)
    labels = read_labels(directory)
    kind = read_output_kind(directory, manifest, len(labels))
    check_digests(directory, manifest, descriptions=False)
    prepare = None if kind in BY_PLACE else find_preparation(directory, manifest)
    engine = import_backend(manifest["backend"]).load_engine(directory, threads)
    check_engine_inputs(directory, manifest, engine)
    check_digests(directory, manifest, descriptions=True)
    if kind == "tokens":
        from hfcompress.quantization.pipelines import Tagger  # transformers' pipelines take long

        return Tagger(directory, engine, labels, manifest, shape)
    if kind == "masked":
        from hfcompress.quantization.pipelines import MaskFiller

        return MaskFiller(directory, engine, labels, manifest, shape)
    if kind == "pixels":
        from hfcompress.quantization.pipelines import Segmenter

        return Segmenter(directory, engine, labels, manifest, shape)
    if kind == "ranking":
        from hfcompress.quantization.reranker import Reranker

        return Reranker(engine, prepare, manifest, _config(directory), str(directory), shape)
    if kind == "spans":
        from hfcompress.quantization.reader import Reader

        return Reader(directory, engine, labels, manifest, shape)
    return Predictor(engine, labels, prepare, manifest, shape, kind)


def _is_reranker(directory: Path) -> bool:
    """Return whether a folder of torch weights says that its logit is the score of a pair."""
    return not (directory / MANIFEST).is_file() and is_cross_encoder(_config(directory))


def _config(directory: Path) -> Mapping[str, object]:
    """Return ``config.json``; empty where it cannot be read."""
    try:
        data = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, Mapping) else {}
