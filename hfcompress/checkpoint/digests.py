"""Digests of a checkpoint's files, kept in the record in its ``config.json``.

A digest is the SHA-256 of a file of weights; of ``config.json`` it is that of its fields, but for
the digests themselves. ``save_pretrained`` writes a record without digests, so that a model that
is trained on and saved again needs none of this.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from typing_extensions import TypeIs

from hfcompress.checkpoint.record import METHOD, RECORD, Record
from hfcompress.errors import ModelError
from hfcompress.utils import atomic_write, file_digest, has_digest

_CONFIG, _DIGESTS = "config.json", "digests"


def write_digests(folder: Path) -> None:
    """Put the digests of a saved checkpoint into its record; a checkpoint without one is left."""
    path = folder / _CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    record = config.get(RECORD)
    if not _is_ours(record):
        return
    files = sorted((*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")))
    digests = {file.name: file_digest(file) for file in files}
    config[RECORD] = {**record, _DIGESTS: {**digests, _CONFIG: config_digest(config)}}
    atomic_write(path, json.dumps(config, indent=2) + "\n")


def has_digests(folder: Path) -> bool:
    """Whether the record of a saved checkpoint has digests."""
    path = folder / _CONFIG
    record = json.loads(path.read_text(encoding="utf-8")).get(RECORD) if path.is_file() else None
    return _is_ours(record) and _DIGESTS in record


def _is_ours(record: object) -> TypeIs[dict[str, object]]:
    return isinstance(record, dict) and record.get("quant_method") == METHOD


def check_digests(record: Record, files: Sequence[str]) -> None:
    """Refuse files that differ from those that were saved.

    Args:
        record: of the checkpoint; without digests nothing is checked.
        files: the checkpoint's files of weights.

    Raises:
        ModelError: one of them, or ``config.json`` beside them, differs.
    """
    for file in map(Path, files):
        expected = record.digests.get(file.name)
        if record.digests and not has_digest(file, expected):
            raise ModelError(
                f"{file} differs from what was saved; copy it again or, if you changed it on "
                f"purpose, remove {_DIGESTS!r} from the {RECORD} in {_CONFIG}"
            )
    path = Path(files[0]).with_name(_CONFIG)
    if _CONFIG in record.digests and path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        if config_digest(config) != record.digests[_CONFIG]:
            raise ModelError(
                f"{path} differs from what was saved; copy it again or, if you changed it on "
                f"purpose, remove {_DIGESTS!r} from its {RECORD}"
            )


def config_digest(config: Mapping[str, object]) -> str:
    """The SHA-256 of the fields of a ``config.json``, without the digests in it."""
    record = config.get(RECORD)
    if isinstance(record, Mapping):
        plain = {name: value for name, value in record.items() if name != _DIGESTS}
        config = {**config, RECORD: plain}
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
