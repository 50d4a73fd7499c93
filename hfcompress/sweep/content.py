"""Hashes of what a step's result depends on, so that no other result is taken for it."""

from __future__ import annotations

import hashlib
import json

from hfcompress.config import Config
from hfcompress.data.columns import texts_apart
from hfcompress.data.config import DataConfig
from hfcompress.data.load import Examples, load_texts
from hfcompress.models.hub import fingerprint_folder
from hfcompress.models.loading import ModelConfig, model_source


def content_hash(data: object) -> str:
    """Hash of plain data; the order of keys does not matter."""
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def content_elsewhere(config: Config, examples: Examples) -> list[str]:
    """Return the hash of each thing that a step reads besides the model and data of its recipe.

    Its fields have the paths; what lies there may have changed since a result was kept.

    Args:
        config: of the step, with the configs in its fields.
        examples: of the recipe; further texts are used without those that are measured.

    Raises:
        SourceError, DataError: as `load_texts`.
        SourceError: as `model_source`.
    """
    found: list[str] = []
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, DataConfig):
            texts = load_texts(value)
            found.append(content_hash(texts_apart(texts, examples.eval, examples.columns)))
        elif isinstance(value, ModelConfig):
            source = None if value.path is None else model_source(value)
            if source is not None and source.path is not None:  # a hub's name has its commit
                found.append(fingerprint_folder(source.path))
        elif isinstance(value, Config):
            found += content_elsewhere(value, examples)
    return found
