"""Data sets by name: any source that ``datasets.load_dataset`` reads -> labelled train and eval.

What comes out is plain: a `datasets.Dataset` with the raw columns and an integer ``label``,
and a count of every row that was left out and why. `hfcompress.data.encode` turns it into batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from datasets import Dataset

from hfcompress.config import nearest
from hfcompress.data.columns import find_column, input_columns, label_values, labelled
from hfcompress.data.config import LABEL_COLUMNS, DataConfig
from hfcompress.data.image_batches import array_chunks, is_array_column
from hfcompress.data.read import read
from hfcompress.errors import DataError
from hfcompress.models.loading import Modality


@dataclass(frozen=True)
class Examples:
    """Labelled examples, ready to be encoded.

    Attributes:
        train: rows to train and calibrate on; None where only measuring is possible.
        eval: rows to measure on.
        columns: the text columns (one or two), or the image column.
        modality: what the columns hold.
        labels: label names in order; the ``label`` column indexes them.
        dropped: what was left out, as ``reason -> rows``.
        notes: what was decided on the user's behalf, one sentence each.
    """

    train: Dataset | None
    eval: Dataset
    columns: tuple[str, ...]
    modality: Modality
    labels: list[str]
    dropped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_examples(config: DataConfig, modality: Modality, need_train: bool) -> Examples:
    """Read, label, filter, split and limit a data set.

    Args:
        config: which data.
        modality: what the task reads.
        need_train: a step trains or calibrates, so a training side must exist.

    Raises:
        SourceError: the path, package, hub or split is not there.
        DataError: a column or label that is not there, one class only, an empty side.
    """
    raw, notes = read(config, modality)
    return examples_of(raw, config, modality, need_train, notes)


def examples_of(
    raw: Mapping[str, Dataset],
    config: DataConfig,
    modality: Modality,
    need_train: bool,
    notes: tuple[str, ...] = (),
) -> Examples:
    """As `load_examples`, of data sets that are loaded already.

    Args:
        raw: split name -> its rows; of one split alone both sides are made.
        config: what columns and splits mean; its ``path`` names the data in messages.
        modality: what the task reads.
        need_train: a step trains or calibrates, so a training side must exist.
        notes: what was decided when they were read.

    Raises:
        DataError: as `load_examples`.
    """
    first = next(iter(raw.values()))
    columns = input_columns(config, modality, first)
    label = find_column(config.label, LABEL_COLUMNS, first, "label")
    if config.group is not None:
        find_column(config.group, (), first, "group")
    train_raw, eval_raw = choose_splits(raw, config, need_train)
    names, values = label_values(config, label, eval_raw)
    dropped: dict[str, int] = {}
    sides: dict[str, Dataset | None] = {"train": None}
    if train_raw is not None:
        sides["train"] = labelled(train_raw, label, values, columns, "train", dropped)
    sides["eval"] = labelled(eval_raw, label, values, columns, "eval", dropped)
    if train_raw is None and need_train:
        sides["train"], sides["eval"] = split(sides["eval"], config)
    limited = {
        side: limit(rows, count, config.seed)
        for (side, rows), count in zip(
            sides.items(), (config.max_train, config.max_eval), strict=True
        )
    }
    for side, rows in limited.items():
        check_classes(rows, names, side, config)
    assert limited["eval"] is not None
    return Examples(limited["train"], limited["eval"], columns, modality, names, dropped, notes)


def load_texts(config: DataConfig) -> list[str]:
    """Texts without labels: one column of a data set, or the lines of a ``.txt`` file.

    Args:
        config: which data; of several splits the one that ``train`` names. Labels are not read.

    Raises:
        SourceError: the path, package or hub is not there.
        DataError: no such column or split, or no text.
    """
    raw, _ = read(config, "text")
    if len(raw) > 1 and config.train not in raw:
        known = list(raw)
        raise DataError(
            f"data.train: there is no split {config.train!r}{nearest(config.train, known)}"
        )
    rows = raw[config.train] if config.train in raw else next(iter(raw.values()))
    (column, *more) = input_columns(config, "text", rows)
    if more:
        raise DataError("texts without labels come from one column; name one in text")
    limited = limit(rows.select_columns(column), config.max_train, config.seed)
    assert limited is not None
    texts = [text for text in limited[column][:] if text and text.strip()]
    if not texts:
        raise DataError(f"data: {config.path!r} holds no text in column {column!r}")
    return texts


def choose_splits(
    raw: Mapping[str, Dataset], config: DataConfig, need_train: bool
) -> tuple[Dataset | None, Dataset]:
    """The two named splits; a lone split stands for both and is divided later."""
    if len(raw) == 1:
        return None, next(iter(raw.values()))
    for what, name, needed in (("train", config.train, need_train), ("eval", config.eval, True)):
        if needed and name not in raw:
            raise DataError(f"data.{what}: there is no split {name!r}{nearest(name, list(raw))}")
    return raw.get(config.train) if need_train else None, raw[config.eval]


def split(rows: Dataset | None, config: DataConfig) -> tuple[Dataset, Dataset]:
    """Divide a lone split, whole groups at a time where a group column is named."""
    assert rows is not None
    if config.group is None:
        if len(rows) < 2:
            raise DataError(f"data: {len(rows)} usable rows cannot be split in train and eval")
        sides = rows.train_test_split(test_size=config.eval_fraction, seed=config.seed)
        return sides["train"], sides["test"]
    groups = rows[config.group][:]
    order = sorted(
        {str(group) for group in groups}, key=lambda group: _shuffled(group, config.seed)
    )
    wanted, taken, chosen = config.eval_fraction * len(rows), 0, set()
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[str(group)] = sizes.get(str(group), 0) + 1
    for group in order:
        if taken >= wanted:
            break
        chosen.add(group)
        taken += sizes[group]
    sides = [
        rows.select([i for i, group in enumerate(groups) if (str(group) in chosen) is measured])
        for measured in (False, True)
    ]
    for side, name in zip(sides, ("train", "eval"), strict=True):
        if not len(side):
            raise DataError(
                f"data.group: splitting by {config.group!r} ({len(sizes)} groups) leaves the "
                f"{name} side empty; use another column or eval_fraction"
            )
    return sides[0], sides[1]


def _shuffled(group: str, seed: int) -> str:
    # A hash instead of a shuffle: adding a group moves no other group to the other side.
    return hashlib.sha256(f"{seed}:{group}".encode()).hexdigest()


def limit(rows: Dataset | None, most: int | None, seed: int) -> Dataset | None:
    """At most so many rows, drawn by the seed."""
    if rows is None or most is None or len(rows) <= most:
        return rows
    return rows.shuffle(seed=seed).select(range(most))


def check_classes(rows: Dataset | None, names: list[str], side: str, config: DataConfig) -> None:
    """Refuse a side without rows, or with one class only.

    Raises:
        DataError: such a side.
    """
    if rows is None:
        return
    if not len(rows):
        raise DataError(f"data: the {side} side of {config.path!r} has no usable row")
    present = set(rows["label"])
    if len(names) < 2 or len(present) < 2:
        only = names[present.pop()] if present else "none"
        raise DataError(
            f"data: the {side} side of {config.path!r} has one class only ({only}); "
            f"measuring needs two"
        )


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


def _content(value: object) -> object:
    """An image by its bytes, anything else as it is."""
    if isinstance(value, dict) and {"bytes", "path"} <= value.keys():
        data = value["bytes"] or Path(value["path"]).read_bytes()
        return hashlib.sha256(data).hexdigest()
    return value
