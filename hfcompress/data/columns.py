"""Columns of a data set: which hold the input and the label, and the class of each row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import datasets
from datasets import ClassLabel, Dataset

from hfcompress.config import nearest
from hfcompress.data.config import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    TEXT_COLUMNS,
    DataConfig,
    Labels,
)
from hfcompress.errors import DataError
from hfcompress.models.labels import fold_label, label_key, label_name, numbers_of
from hfcompress.models.loading import Modality

# Columns that hold two texts of one example in the usual data sets.
_AMBIGUOUS = (("question", "sentence"), ("sentence", "question"), ("text", "text_pair"))
_PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("question", "passage"), ("query", "passage"), ("text_a", "text_b"), ("text1", "text2"),
)  # fmt: skip
"""Columns that are of no use but together."""
_MOST_CLASSES = 1000
_SEPARATORS = "|;,"


def input_columns(config: DataConfig, modality: Modality, rows: Dataset) -> tuple[str, ...]:
    """The columns that hold the input: one image, one text, or a pair of texts.

    Raises:
        DataError: a column that does not exist, more than two, or a pair of texts of which the
            config does not say whether both are read.
    """
    if modality == "image":
        return (find_column(config.image, IMAGE_COLUMNS, rows, "image"),)
    if isinstance(config.text, tuple):
        if len(config.text) not in (1, 2):
            raise DataError(f"data.text names {len(config.text)} columns; name one or two")
        return tuple(find_column(name, (), rows, "text") for name in config.text)
    pair = _pair_of(config, rows)
    if pair is not None:
        return pair
    found = find_column(config.text, TEXT_COLUMNS, rows, "text")
    for first, second in _AMBIGUOUS:
        if config.text is None and found == first and second in rows.column_names:
            raise DataError(
                f"the data has the text columns {first!r} and {second!r}; write data.text: "
                f"{first} to read one of them, or [{first}, {second}] for pairs"
            )
    return (found,)


def _pair_of(config: DataConfig, rows: Dataset) -> tuple[str, str] | None:
    """The two columns of text that the usual data sets of pairs have; None where others fit."""
    if config.text is not None:
        return None
    there = {column.casefold(): column for column in reversed(rows.column_names)}
    if any(name in there for name in TEXT_COLUMNS):
        return None
    found = [(there[a], there[b]) for a, b in _PAIRS if a in there and b in there]
    return found[0] if len(found) == 1 else None


def find_column(name: str | None, usual: tuple[str, ...], rows: Dataset, what: str) -> str:
    """A column by name, or the first usual one that exists.

    Raises:
        DataError: there is no such column.
    """
    if name is None:
        there = {column.casefold(): column for column in reversed(rows.column_names)}
        name = next((there[item] for item in usual if item in there), None)
        if name is None:
            raise DataError(
                f"data.{what} is not given and none of {', '.join(usual)} is a column; "
                f"the data has: {', '.join(rows.column_names)}"
            )
    if name not in rows.column_names:
        hint = nearest(name, rows.column_names)
        raise DataError(f"data.{what}: there is no column {name!r}{hint}")
    return name


def with_texts(rows: Dataset, columns: Sequence[str]) -> Dataset:
    """The rows with numbers in columns of text written as text."""
    for column in columns:
        feature = rows.features.get(column)
        if isinstance(feature, datasets.Value) and "string" not in feature.dtype:
            rows = rows.cast_column(column, datasets.Value("string"))
    return rows


def column_texts(rows: Dataset, columns: Sequence[str]) -> list[str]:
    """All texts of some columns, column after column; the words of a sentence with spaces."""
    return [
        value if isinstance(value, str) else " ".join(value)
        for column in columns
        for value in rows[column][:]
    ]


def texts_apart(texts: Sequence[str], rows: Dataset, columns: Sequence[str]) -> list[str]:
    """The texts that are in no row, whatever their case and spaces."""
    known = {_folded(text) for text in column_texts(rows, columns)}
    return [text for text in texts if _folded(text) not in known]


def _folded(text: str) -> str:
    return "".join(text.split()).lower()


def label_column(config: DataConfig, rows: Dataset) -> str:
    """The column of labels; see `find_column`."""
    return find_column(one_label(config), LABEL_COLUMNS, rows, "label")


def one_label(config: DataConfig) -> str | None:
    """The label column that is named; None where none is.

    Raises:
        DataError: several are named.
    """
    if not isinstance(config.label, tuple):
        return config.label
    if len(config.label) != 1:
        raise DataError(f"data.label names {len(config.label)} columns; this task reads one")
    return config.label[0]


Names = Sequence[str | None]
"""The label of each row; None where it has none."""
Feature: TypeAlias = ClassLabel | datasets.Value


def row_labels(rows: Dataset, label: str, config: DataConfig) -> list[str | None]:
    """The label of each row as text; None where it has none.

    -1 is a label, unless no row has another one: that is how unlabelled splits are published.

    Raises:
        DataError: a column of lists, or of numbers that are not whole.
    """
    feature = rows.features[label]
    values = rows[label][:]  # a list: a lazy column reads Arrow anew for each item
    if any(isinstance(value, (list, dict)) for value in values):
        raise DataError(
            f"data.label: column {label!r} has lists, several labels for a row; give a column "
            f"with one label for each row"
        )
    texts = {value: _text(value, feature) for value in set(values)}
    if _are_measurements(texts.values()):
        raise DataError(f"data.label: column {label!r} has numbers or free text, not classes")
    if set(texts.values()) <= {"-1", None}:
        texts = dict.fromkeys(texts)
    if config.labels is not None:
        texts = {value: _renamed(text, config.labels) for value, text in texts.items()}
    return [texts[value] for value in values]


def _text(value: object, feature: Feature) -> str | None:
    if value is None or value != value or value == "":
        return None
    if isinstance(feature, ClassLabel):
        assert isinstance(value, int)
        return str(feature.names[value]) if value >= 0 else None
    return label_name(value) or None


def _are_measurements(names: Iterable[str | None]) -> bool:
    """Whether all labels are numbers, and some are not whole."""
    try:
        return any(not float(name).is_integer() for name in names if name is not None)
    except (ValueError, OverflowError):
        return False


def _renamed(name: str | None, new: Labels) -> str | None:
    """A label's name in ``data.labels``, where that is a mapping."""
    if name is None or not isinstance(new, Mapping):
        return name
    key = label_key([str(old) for old in new])
    for old, value in new.items():
        if key(str(old)) == key(name):
            return None if value is None else str(value)
    return name


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Attributes:
        names: in order.
        numbers: the class number of each label that a row may have.
        notes: what was decided, one sentence each.
    """

    names: tuple[str, ...]
    numbers: dict[str, int]
    notes: tuple[str, ...] = ()


def find_classes(
    sides: Sequence[Names], features: Sequence[Feature], label: str, config: DataConfig
) -> Classes:
    """All classes of some sides; one may be missing from a side.

    Args:
        sides: the label of each row, by side.
        features: of the label column, by side; a ``ClassLabel`` names and orders the classes.
        label: the column, for messages.
        config: its ``labels`` may list the classes.

    Raises:
        DataError: a label that no row has, several labels in one cell, or too many labels.
    """
    known = _stated_names(features, config)
    present = {name: None for names in sides for name in names if name is not None}
    candidates = list({**dict.fromkeys(known), **present})
    if isinstance(config.labels, tuple):
        return _listed(config.labels, known, candidates, set(present), label)
    if len(candidates) > _MOST_CLASSES and not known:
        raise DataError(f"data.label: column {label!r} has numbers or free text, not classes")
    _check_one_label_a_cell(candidates, label)
    return _ordered(candidates, known)


def _stated_names(features: Sequence[Feature], config: DataConfig) -> list[str]:
    """The names of ``ClassLabel`` features, in the order of the first."""
    known: list[str] = []
    for feature in features:
        own = feature.names if isinstance(feature, ClassLabel) else ()
        renamed = [_renamed(str(name), config.labels) for name in own]
        names = list(dict.fromkeys(name for name in renamed if name is not None))
        key = label_key(known, names)
        keys = {key(name) for name in known}
        known += [name for name in names if key(name) not in keys]
    return known


def _listed(
    labels: Sequence[str | int],
    known: list[str],
    candidates: list[str],
    present: set[str],
    label: str,
) -> Classes:
    """The classes that ``data.labels`` lists; ``known`` are the names of a ``ClassLabel``."""
    wanted = [label_name(item) for item in labels]
    key = label_key(wanted, known)
    keys = {key(name) for name in candidates}
    by_number = all(name.isdigit() and int(name) < len(known) for name in wanted)
    if by_number and not keys & set(map(key, wanted)):
        wanted = [known[int(name)] for name in wanted]
    places = {key(name): place for place, name in enumerate(wanted)}
    numbers = {
        name: places[key(name)]
        for name in candidates
        if key(name) in places and (name in wanted or not _is_letter_of(name, candidates))
    }
    absent = [name for name in wanted if key(name) not in keys]
    if absent and present - numbers.keys():
        hint = nearest(absent[0], candidates)
        raise DataError(f"data.labels: no row has the label {absent[0]!r} in {label!r}{hint}")
    return Classes(tuple(wanted), numbers)


def _ordered(candidates: list[str], known: list[str]) -> Classes:
    """Every label as a class: in the order of ``ClassLabel`` features, or sorted."""
    key = label_key(known)
    groups: dict[str, list[str]] = {key(name): [name] for name in known}
    for name in candidates:
        folded = key(name) if known else fold_label(name)
        group = groups.setdefault(name if _is_letter_of(name, candidates) else folded, [])
        group.extend([] if name in group else [name])
    merged = [names for names in groups.values() if len(names) > 1]
    first = {names[0]: names for names in groups.values()}
    added = sorted_labels([name for name in first if name not in known])
    names = [*known, *added]
    numbers = {label: place for place, name in enumerate(names) for label in first[name]}
    notes = tuple(f"labels {' and '.join(map(repr, names))} are one class" for names in merged)
    return Classes(tuple(names), numbers, notes)


def _is_letter_of(name: str, names: Sequence[str]) -> bool:
    """Whether a label is a letter of which another case is a label: A and a are two classes."""
    return len(name) == 1 and name.swapcase() != name and name.swapcase() in names


def sorted_labels(names: Sequence[str]) -> list[str]:
    """Labels by number where all of them are numbers, else by name."""
    numbers = numbers_of(names)
    if numbers is None:
        return sorted(names)
    return [name for _, name in sorted(zip(numbers, names, strict=True))]


def _check_one_label_a_cell(names: Sequence[str], label: str) -> None:
    """Refuse cells that list several labels."""
    known = {fold_label(name) for name in names}
    marked = [name for name in names if "|" in name or ";" in name]
    several = len(names) > 1 and 2 * len(marked) >= len(names)
    for name in names:
        parts = [next((name.split(mark) for mark in _SEPARATORS if mark in name), [])][0]
        listed = len(parts) > 1 and all(fold_label(part) in known for part in parts)
        if listed or re.fullmatch(r"\[.*,.*\]", name) or (several and name in marked):
            raise DataError(
                f"data.label: {name!r} in column {label!r} is several labels; write "
                f"data.problem: sets, or data.labels to say which classes there are"
            )


def labelled(
    rows: Dataset,
    names: Names,
    classes: Classes,
    columns: tuple[str, ...],
    side: str,
    dropped: dict[str, int],
) -> Dataset:
    """Rows that have a class and an input, with an integer ``label`` column.

    Args:
        rows: of one side.
        names: the label of each row.
        classes: rows with other labels are left out.
        columns: rows whose texts are empty are left out.
        side: for the reasons in ``dropped``.
        dropped: receives how many rows were left out, by reason.
    """
    keep = [index for index, name in enumerate(names) if name in classes.numbers]
    count_dropped(dropped, f"{side}: no label", sum(name is None for name in names))
    count_dropped(dropped, f"{side}: other label", len(names) - len(keep) - names.count(None))
    if isinstance(rows.features[columns[0]], datasets.Value):
        texts = [rows[column][:] for column in columns]
        full = [index for index in keep if all(text[index] for text in texts)]
        count_dropped(dropped, f"{side}: empty {' or '.join(columns)}", len(keep) - len(full))
        keep = full
    labels = [classes.numbers[str(names[index])] for index in keep]
    return with_labels(rows.select(keep), labels)


def with_labels(rows: Dataset, labels: Sequence[object]) -> Dataset:
    """The rows with a ``label`` column of class numbers in the place of any other."""
    if "label" in rows.column_names:
        rows = rows.remove_columns("label")
    return rows.add_column("label", list(labels))


def count_dropped(dropped: dict[str, int], reason: str, rows: int) -> None:
    """Add rows that are left out to their reason."""
    if rows:
        dropped[reason] = dropped.get(reason, 0) + rows
