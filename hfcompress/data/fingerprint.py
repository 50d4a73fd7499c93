"""A hash of what rows say, wherever they came from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from hfcompress.data.arrays import array_chunks, is_array_column


def fingerprint(rows: Dataset | None, columns: tuple[str, ...]) -> str:
    """A hash of what the rows say, whatever file, hub or cache they came from.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256()
    if rows is not None:
        plain = rows.select_columns([*columns, *({"label"} & set(rows.column_names))])
        for name, feature in plain.features.items():
            if isinstance(feature, datasets.Image):
                plain = plain.cast_column(name, datasets.Image(decode=False))
            elif is_array_column(plain, name):  # its numbers are too many to be looked at singly
                digest.update(f"{name} {feature.shape}".encode())
                for images in array_chunks(plain, name):
                    digest.update(images.tobytes())
                plain = plain.remove_columns(name)
        for row in plain:
            digest.update(repr([_content(row[name]) for name in sorted(row)]).encode())
    return digest.hexdigest()[:32]


def _content(value: Any) -> Any:
    """An image by its bytes, anything else as it is."""
    if isinstance(value, dict) and {"bytes", "path"} <= value.keys():
        data = value["bytes"] or Path(value["path"]).read_bytes()
        return hashlib.sha256(data).hexdigest()
    return value
