"""Which columns hold the input and the label, and what the labels' values mean."""

from __future__ import annotations

from typing import Any

import datasets
from datasets import ClassLabel, Dataset

from hfcompress.config import nearest
from hfcompress.data.config import IMAGE_COLUMNS, TEXT_COLUMNS, DataConfig
from hfcompress.errors import DataError
from hfcompress.models.loading import Modality


def input_columns(config: DataConfig, modality: Modality, rows: Dataset) -> tuple[str, ...]:
    """The columns that hold the input: one image, one text, or a pair of texts.

    Raises:
        DataError: a column that is not there, or more than two.
    """
    if modality == "image":
        return (find_column(config.image, IMAGE_COLUMNS, rows, "image"),)
    if isinstance(config.text, tuple):
        if len(config.text) not in (1, 2):
            raise DataError(f"data.text names {len(config.text)} columns; name one or two")
        return tuple(find_column(name, (), rows, "text") for name in config.text)
    return (find_column(config.text, TEXT_COLUMNS, rows, "text"),)


def find_column(name: str | None, usual: tuple[str, ...], rows: Dataset, what: str) -> str:
    """A column by name, or the first usual one that is there."""
    if name is None:
        name = next((item for item in usual if item in rows.column_names), None)
        if name is None:
            raise DataError(
                f"data.{what} is not given and none of {', '.join(usual)} is a column; "
                f"the data has: {', '.join(rows.column_names)}"
            )
    if name not in rows.column_names:
        hint = nearest(name, rows.column_names)
        raise DataError(f"data.{what}: there is no column {name!r}{hint}")
    return name


def label_values(config: DataConfig, label: str, rows: Dataset) -> tuple[list[str], dict[Any, int]]:
    """Label names in order, and which raw value means which index."""
    feature = rows.features[label]
    if isinstance(feature, ClassLabel):
        own = list(feature.names)
        wanted = [str(item) for item in config.labels] if config.labels else own
        indices = [own.index(name) if name in own else None for name in wanted]
        if None in indices and all(name.isdigit() and int(name) < len(own) for name in wanted):
            indices = [int(name) for name in wanted]
            wanted = [own[int(name)] for name in wanted]
        if None in indices:
            unknown = wanted[indices.index(None)]
            raise DataError(f"data.labels: there is no label {unknown!r}{nearest(unknown, own)}")
        return wanted, {value: index for index, value in enumerate(indices)}
    present = {value for value in rows.unique(label) if value is not None and value != -1}
    if config.labels is None:
        if len(present) > 1000 or any(isinstance(value, float) for value in present):
            raise DataError(f"data.label: column {label!r} holds numbers or free text, not classes")
        ordered = sorted(present, key=lambda value: (isinstance(value, str), value))
        return [str(value) for value in ordered], {value: i for i, value in enumerate(ordered)}
    by_text = {str(value): value for value in present}
    for name in map(str, config.labels):
        if name not in by_text:
            hint = nearest(name, list(by_text))
            raise DataError(f"data.labels: no row has the label {name!r} in {label!r}{hint}")
    return [str(item) for item in config.labels], {
        by_text[str(item)]: index for index, item in enumerate(config.labels)
    }


def labelled(
    rows: Dataset,
    label: str,
    values: dict[Any, int],
    columns: tuple[str, ...],
    side: str,
    dropped: dict[str, int],
) -> Dataset:
    """Rows whose label counts, with an integer ``label`` column; the others are counted."""
    raw = rows[label][:]  # a list: a lazy column reads Arrow anew for each item
    keep = [index for index, value in enumerate(raw) if value in values]
    _count(dropped, f"{side}: other label", len(raw) - len(keep))
    if isinstance(rows.features[columns[0]], datasets.Value):
        texts = [rows[column][:] for column in columns]
        full = [index for index in keep if all(text[index] for text in texts)]
        _count(dropped, f"{side}: empty {' or '.join(columns)}", len(keep) - len(full))
        keep = full
    labels = [values[raw[index]] for index in keep]
    chosen = rows.select(keep)
    if "label" in chosen.column_names:
        chosen = chosen.remove_columns("label")
    return chosen.add_column("label", labels)


def _count(dropped: dict[str, int], reason: str, rows: int) -> None:
    if rows:
        dropped[reason] = dropped.get(reason, 0) + rows
