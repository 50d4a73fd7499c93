"""Data sets by name: any source that ``datasets.load_dataset`` reads -> labelled train and eval.

What comes out is plain: a `datasets.Dataset` with the raw columns and an integer ``label``,
and a count of every row that was left out and why. `hfcompress.data.encode` turns it into batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, Value

from hfcompress.config import nearest
from hfcompress.data.columns import (
    find_classes,
    find_column,
    input_columns,
    label_column,
    labelled,
    row_labels,
    with_labels,
    with_texts,
)
from hfcompress.data.config import LABEL_COLUMNS, DataConfig
from hfcompress.data.image_batches import array_chunks, is_array_column, readable_rows
from hfcompress.data.read import read
from hfcompress.data.split import (
    absent_classes,
    check_classes,
    choose_splits,
    divided,
    limit,
    split,
)
from hfcompress.data.targets import Targets, find_targets, targeted
from hfcompress.errors import DataError, ModelError
from hfcompress.models.labels import Alignment, align_labels, label_names, numbers_of, unlike_labels
from hfcompress.models.loading import LoadedModel, Modality
from hfcompress.models.outputs import VECTORS, OutputKind, ignored_label

_TEXT = (Value("string"), Value("large_string"))


@dataclass(frozen=True)
class Examples:
    """Labelled examples, ready to be encoded.

    Attributes:
        train: rows to train and calibrate on; None where only measuring is possible.
        eval: rows to measure on.
        columns: the text columns (one or two), or the image column.
        modality: what the columns hold.
        labels: label names in order; the ``label`` column indexes them.
        kind: what a model's outputs for them mean.
        config: as they were read; None for rows in memory.
        dropped: what was left out, as ``reason -> rows``.
        notes: what was decided on the user's behalf, one sentence each.
        choose: rows of the training side that candidates are chosen on; None without them.
        ignored: class number of pixels that count nowhere, where masks are compared.
    """

    train: Dataset | None
    eval: Dataset
    columns: tuple[str, ...]
    modality: Modality
    labels: list[str]
    dropped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    choose: Dataset | None = None
    kind: OutputKind = "classification"
    config: DataConfig | None = None
    ignored: int = 255

    def aligned(self, alignment: Alignment) -> Examples:
        """The same examples with the class numbers and the order of a model.

        Args:
            alignment: which class of the model each label means.
        """
        notes = self.notes if alignment.note is None else (*self.notes, alignment.note)
        if self.kind == "multi_label":
            unused = len(alignment.names) - len(self.labels)
            if unused:
                notes = (*notes, f"{unused} labels of the model are in no row: all count as false")
        found = replace(self, labels=list(alignment.names), notes=notes)
        same = alignment.places == tuple(range(len(alignment.places)))
        if same and (self.kind != "multi_label" or len(alignment.names) == len(self.labels)):
            return found
        train, measured, chosen = (
            None
            if rows is None
            else with_labels(
                rows, [_renumbered(one, alignment, self.kind) for one in rows["label"][:]]
            )
            for rows in (self.train, self.eval, self.choose)
        )
        assert measured is not None
        return replace(found, train=train, eval=measured, choose=chosen)


def _renumbered(label: Any, alignment: Alignment, kind: OutputKind) -> Any:
    """A class number, or those of a list, as the model counts; below 0 means no label. Of sets, the
    mark of each label of the model."""
    if kind == "multi_label":
        marks = dict(zip(alignment.places, label, strict=True))
        return [marks.get(place, 0.0) for place in range(len(alignment.names))]
    if isinstance(label, list):
        return [alignment.places[number] if number >= 0 else number for number in label]
    return alignment.places[label]


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
    if modality == "text":
        raw = {split: with_texts(rows, columns) for split, rows in raw.items()}
    if config.group is not None:
        find_column(config.group, (), first, "group")
    sides_raw = choose_splits(raw, config, need_train)
    targets = find_targets(sides_raw, config)
    if targets is not None:
        return _targeted(sides_raw, targets, columns, config, modality, need_train, notes)
    label = label_column(config, first)
    row_names = {
        side: row_labels(rows, find_column(label, (), rows, "label"), config)
        for side, rows in sides_raw.items()
    }
    features = [rows.features[label] for rows in sides_raw.values()]
    classes = find_classes(list(row_names.values()), features, label, config)
    dropped: dict[str, int] = {}
    sides: dict[str, Dataset] = {}
    for side, rows in reversed(sides_raw.items()):  # the training side first
        if side == "eval" or need_train:
            found = labelled(rows, row_names[side], classes, columns, side, dropped)
            if modality == "image" and config.skip_unreadable:
                found, left_out = readable_rows(found, columns[0], side, dropped)
                notes = (*notes, *left_out)
            sides[side] = found
    limited = divided(sides, config, need_train)
    for side, kept in limited.items():
        check_classes(kept, classes.names, side, config)
    assert limited["eval"] is not None
    return Examples(
        train=limited["train"],
        eval=limited["eval"],
        columns=columns,
        modality=modality,
        labels=list(classes.names),
        dropped=dropped,
        notes=(*notes, *classes.notes, *absent_classes(limited, classes.names)),
        config=config,
    )


def _targeted(
    raw: Mapping[str, Dataset],
    targets: Targets,
    columns: tuple[str, ...],
    config: DataConfig,
    modality: Modality,
    need_train: bool,
    notes: tuple[str, ...],
) -> Examples:
    """Examples whose labels are sets or numbers."""
    dropped: dict[str, int] = {}
    sides = {
        side: targeted(rows, targets.rows[side], columns, side, dropped)
        for side, rows in reversed(list(raw.items()))
        if side == "eval" or need_train
    }
    if modality == "image" and config.skip_unreadable:
        for side, rows in sides.items():
            sides[side], left_out = readable_rows(rows, columns[0], side, dropped)
            notes = (*notes, *left_out)
    both = divided(sides, config, need_train)
    measured = both["eval"]
    if measured is None or not len(measured):
        raise DataError(f"data: the eval side of {config.path!r} has no usable row")
    return Examples(
        train=both["train"], eval=measured, columns=columns, modality=modality,
        labels=list(targets.names), dropped=dropped, notes=(*notes, *targets.notes),
        kind=targets.kind, config=config,
    )  # fmt: skip


def examples_of_texts(rows: Dataset, classes: bool) -> Examples:
    """Examples of a data set in memory: its one or two columns of text, and its labels.

    Args:
        rows: texts, and perhaps labels.
        classes: labels are classes, as names or numbers; otherwise they stay as they are.

    Raises:
        DataError: no column of text or more than two, or some rows without a label.
    """
    label = next((name for name in LABEL_COLUMNS if name in rows.column_names), None)
    texts = tuple(name for name, kind in rows.features.items() if kind in _TEXT and name != label)
    if len(texts) not in (1, 2):
        raise DataError(
            f"data needs one or two columns of text, or input_ids; it has: "
            f"{', '.join(rows.column_names)}"
        )
    if label is None or not classes:
        return Examples(rows, rows, texts, "text", [])
    config = DataConfig(path="data")
    names = row_labels(rows, label, config)
    found = find_classes([names], [rows.features[label]], label, config)
    if not found.names or names.count(None) == len(names):
        rows = rows.remove_columns(label)
        return Examples(rows, rows, texts, "text", [])
    if None in names:
        raise DataError(
            f"data: {names.count(None):,} of {len(names):,} rows have no label in {label!r}; "
            f"remove them, or the whole column to train without labels"
        )
    rows = with_labels(rows, [found.numbers[str(name)] for name in names])
    return Examples(rows, rows, texts, "text", list(found.names), notes=found.notes)


def strict_alignment(labels: Sequence[str], own: Sequence[str], is_ordered: bool) -> Alignment:
    """Which class of a model each label means, where nobody would read a note.

    Args:
        labels: the data's label names in order.
        own: the model's label names in order.
        is_ordered: the data state the order of their labels (``ClassLabel``).

    Raises:
        ModelError: the labels do not correspond, or are words and the model names no classes.
        DataError: labels that may count the model's classes from 0 or from 1.
    """
    alignment = align_labels(labels, own)
    if alignment is None:
        raise ModelError(unlike_labels(labels, own, "the model"))
    if alignment.note is not None and numbers_of(labels) is None and not is_ordered:
        raise ModelError(
            f"the labels are words ({', '.join(labels[:5])}) and the model does not name its "
            f"classes; write their order into its config (id2label), or give class numbers"
        )
    return alignment


def align_encoded(rows: Dataset, own: Sequence[str] | None) -> Dataset:
    """Rows of model inputs whose labels are the class numbers of a model.

    Args:
        rows: perhaps with one label for each row; other labels are left as they are.
        own: the model's label names in order; None where its labels are not classes.

    Raises:
        ModelError: the labels do not correspond.
        DataError: some rows without a label, or labels that may count the classes from 0 or 1.
    """
    label = next((name for name in ("labels", "label") if name in rows.column_names), None)
    feature = rows.features.get(label)
    if own is None or label is None or not isinstance(feature, (ClassLabel, Value)):
        return rows
    values, classes = set(rows[label][:]), {-100, *range(len(own))}
    whole = isinstance(feature, Value) and all(type(value) is int for value in values)
    if whole and values <= classes:
        return rows
    config = DataConfig(path="data")
    names = row_labels(rows, label, config)
    if None in names or "-100" in names:
        raise DataError(
            f"data: some rows have no label in {label!r} and others {sorted(values)[-1]!r}, which "
            f"is not a class of the model; its classes are 0 to {len(own) - 1}"
        )
    found = find_classes([names], [feature], label, config)
    alignment = strict_alignment(found.names, own, isinstance(feature, ClassLabel))
    numbers = [alignment.places[found.numbers[str(name)]] for name in names]
    return rows.remove_columns(label).add_column(label, numbers)


def align_examples(examples: Examples, loaded: LoadedModel, name: str) -> Examples:
    """The examples with the class numbers of a model.

    Args:
        examples: with the class numbers of the data.
        loaded: a model; where its head is new, the data's class numbers are its own.
        name: the model's, for messages.

    Raises:
        ModelError: the labels do not correspond.
        DataError: labels that may count the model's classes from 0 or from 1.
    """
    own = label_names(loaded.model.config)
    if examples.kind == "pixels":  # the numbers in masks are the model's own
        return replace(examples, labels=own, ignored=ignored_label(loaded.model.config))
    if loaded.new_head or examples.kind in (*VECTORS, "ranking"):
        return examples
    if examples.kind == "regression" and len(own) != len(examples.labels):
        raise ModelError(
            f"model {name!r} gives {len(own)} numbers and the data have {len(examples.labels)}; "
            f"name as many columns in data.label, or add a finetune step, which trains a new head"
        )
    if examples.kind in ("regression", "spans", "masked"):
        return examples
    alignment = loaded.alignment or align_labels(examples.labels, own)
    if alignment is None:
        raise ModelError(unlike_labels(examples.labels, own, f"model {name!r}"))
    return examples.aligned(alignment)


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
        raise DataError(f"data: {config.path!r} has no text in column {column!r}")
    return texts


def hold_out(examples: Examples, config: DataConfig) -> Examples:
    """Return the examples with a share of the training side set apart, as ``config.choose`` says.

    Raises:
        DataError: no training side, or one that cannot be divided.
    """
    if config.choose is None:
        return examples
    if examples.train is None:
        raise DataError(
            "data.choose sets training rows apart, and nothing reads a training side; leave it out"
        )
    group = config.group
    if group is None and examples.kind == "ranking":  # a query's passages stay together
        group = examples.columns[0]
    parts = config.replace(eval_fraction=config.choose, group=group)
    train, chosen = split(examples.train, parts)
    return replace(examples, train=train, choose=chosen)


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
