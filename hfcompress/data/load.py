"""Data sets by name: any source that ``datasets.load_dataset`` reads -> labelled train and eval.

What comes out is plain: a `datasets.Dataset` with the raw columns and an integer ``label``,
and a count of every row that was left out and why. `hfcompress.data.encode` turns it into batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from datasets import Dataset

from hfcompress.config import nearest
from hfcompress.data.columns import find_column, input_columns, label_values, labelled
from hfcompress.data.config import LABEL_COLUMNS, DataConfig
from hfcompress.data.read import read
from hfcompress.data.splits import check_classes, choose_splits, limit, split
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
