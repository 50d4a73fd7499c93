"""Data sets by name: any source that ``datasets.load_dataset`` reads -> labelled train and eval.

What comes out is plain: a `datasets.Dataset` with the raw columns and an integer ``label``,
and a count of every row that was left out and why. `hfcompress.encode` turns it into batches.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, DatasetDict
from pydantic import Field, model_validator

from hfcompress.config import Config, Names, Values, nearest
from hfcompress.errors import DataError, SourceError
from hfcompress.models import Modality
from hfcompress.sources import Source, hub_errors, resolve

_TEXT_COLUMNS = ("text", "sentence", "content", "review")
_IMAGE_COLUMNS = ("image", "img", "pixel_values")
_LABEL_COLUMNS = ("label", "labels", "category", "class")
_FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet",
            ".txt": "text"}  # fmt: skip
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zip", ".zst")
# The file names by which people tell splits apart, and what each is called here.
_SPLIT_NAMES = {"train": "train", "training": "train", "dev": "validation", "valid": "validation",
                "validation": "validation", "val": "validation", "eval": "validation",
                "test": "test", "testing": "test"}  # fmt: skip
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


class DataConfig(Config):
    """Which examples to read, and what their columns mean; a path alone may stand for it."""

    path: str = Field(description="hub name, local file or folder, or pkg://PACKAGE/PATH")
    name: str | None = Field(None, description="configuration on the hub, such as sst2 of glue")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    text: str | Names | None = Field(
        None, description="text column, or two of them for sentence pairs"
    )
    image: str | None = Field(None, description="image column")
    label: str | None = Field(None, description="label column")
    labels: Values | None = Field(
        None, description="label values in order; rows with others are dropped"
    )
    train: str = Field("train", description="split to train and calibrate on")
    eval: str = Field("validation", description="split to measure on")
    eval_fraction: float = Field(
        0.2, gt=0, lt=1, description="share measured on, where the data has one split only"
    )
    group: str | None = Field(
        None, description="column whose values never stand on both sides of a split"
    )
    max_length: int | None = Field(
        None, ge=2, description="longest token sequence, cut beyond; the model's limit by default"
    )
    max_train: int | None = Field(None, ge=1, description="at most so many training rows")
    max_eval: int | None = Field(None, ge=1, description="at most so many measured rows")
    seed: int = Field(0, ge=0, description="of the split and of the limits' choice of rows")

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, data: object) -> object:
        return {"path": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _one_modality(self) -> DataConfig:
        if self.text is not None and self.image is not None:
            raise ValueError("text and image cannot both be set; keep the one the task reads")
        if self.labels is not None and len(set(map(str, self.labels))) < 2:
            raise ValueError(f"labels needs at least two different values, not {list(self.labels)}")
        return self


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
    raw, notes = _read(config, modality)
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
    columns = _input_columns(config, modality, first)
    label = _column(config.label, _LABEL_COLUMNS, first, "label")
    if config.group is not None:
        _column(config.group, (), first, "group")
    train_raw, eval_raw = _choose_splits(raw, config, need_train)
    names, values = _label_values(config, label, eval_raw)
    dropped: dict[str, int] = {}
    sides: dict[str, Dataset | None] = {"train": None}
    if train_raw is not None:
        sides["train"] = _labelled(train_raw, label, values, columns, "train", dropped)
    sides["eval"] = _labelled(eval_raw, label, values, columns, "eval", dropped)
    if train_raw is None and need_train:
        sides["train"], sides["eval"] = _split(sides["eval"], config)
    limited = {
        side: _limit(rows, limit, config.seed)
        for (side, rows), limit in zip(
            sides.items(), (config.max_train, config.max_eval), strict=True
        )
    }
    for side, rows in limited.items():
        _check_classes(rows, names, side, config)
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
    raw, _ = _read(config, "text")
    if len(raw) > 1 and config.train not in raw:
        known = list(raw)
        raise DataError(
            f"data.train: there is no split {config.train!r}{nearest(config.train, known)}"
        )
    rows = raw[config.train] if config.train in raw else next(iter(raw.values()))
    (column, *more) = _input_columns(config, "text", rows)
    if more:
        raise DataError("texts without labels come from one column; name one in text")
    limited = _limit(rows.select_columns(column), config.max_train, config.seed)
    assert limited is not None
    texts = [text for text in limited[column][:] if text and text.strip()]
    if not texts:
        raise DataError(f"data: {config.path!r} holds no text in column {column!r}")
    return texts


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
        for row in plain:
            digest.update(repr([_content(row[name]) for name in sorted(row)]).encode())
    return digest.hexdigest()[:32]


def _content(value: Any) -> Any:
    """An image by its bytes, anything else as it is."""
    if isinstance(value, dict) and {"bytes", "path"} <= value.keys():
        data = value["bytes"] or Path(value["path"]).read_bytes()
        return hashlib.sha256(data).hexdigest()
    return value


# --- reading -----------------------------------------------------------------------------------


def _read(config: DataConfig, modality: Modality) -> tuple[DatasetDict, tuple[str, ...]]:
    """Everything the source holds, one `Dataset` for each split."""
    source = resolve(config.path, "data")
    if source.path is None:
        with hub_errors(source, "data", "--set data.path=FILE_OR_FOLDER"):
            return datasets.load_dataset(source.location, config.name, revision=config.revision), ()
    path = source.path
    if path.is_dir() and (path / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(path)), ()
    if path.is_dir() and (path / "dataset_info.json").is_file():
        return DatasetDict(train=datasets.load_from_disk(str(path))), ()
    if path.is_dir() and modality == "image":
        return _load("imagefolder", source, data_dir=str(path)), ()
    return _read_files(source, path, config)


def _read_files(
    source: Source, path: Path, config: DataConfig
) -> tuple[DatasetDict, tuple[str, ...]]:
    """One data file, or a folder of files named after their splits."""
    # A text file in a folder is a read-me; one of texts is given by its own name.
    kept = (p for p in path.iterdir() if _format(p) not in (None, "text")) if path.is_dir() else ()
    files = sorted(kept) if path.is_dir() else [path]
    if not files or not _format(files[0]):
        raise SourceError(
            f"data: {config.path!r} holds no data file; give a csv, tsv, json, jsonl or parquet "
            f"file (compressed or not), a folder of them, or an image folder"
        )
    kinds = {_format(item) for item in files}
    if len(kinds) > 1:
        raise SourceError(
            f"data: {config.path!r} mixes {' and '.join(sorted(k for k in kinds if k))} files; "
            f"give one of the files"
        )
    splits: dict[str, list[str]] = {}
    for item in files:
        splits.setdefault(_split_name(item) if len(files) > 1 else "train", []).append(str(item))
    kind = kinds.pop()
    options: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    if kind == "csv":
        options, notes = _csv_options(files[0], config)
    return _load(str(kind), source, data_files=splits, **options), notes


def _load(kind: str, source: Source, **options: Any) -> DatasetDict:
    try:
        loaded: DatasetDict = datasets.load_dataset(kind, **options)
    except Exception as error:  # the readers raise many kinds; all mean a file that does not parse
        if "corresponds to no data" in str(error):
            raise DataError(f"data: {source.spec!r} has no usable row") from None
        cause = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"data: {source.spec!r} cannot be read as {kind}: {cause[0]}") from error
    return loaded


def _format(path: Path) -> str | None:
    """``csv``, ``json`` or ``parquet``, from the name, compression aside."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in _COMPRESSIONS]
    return _FORMATS.get(suffixes[-1]) if suffixes else None


def _split_name(path: Path) -> str:
    words = path.name.split(".")[0].lower().replace("-", "_").split("_")
    return next((_SPLIT_NAMES[word] for word in words if word in _SPLIT_NAMES), words[0])


def _csv_options(file: Path, config: DataConfig) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Delimiter and quoting by the suffix; column names where the file has no header line."""
    tabs = ".tsv" in file.suffixes
    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    from fsspec.core import open as open_any  # understands the compressions that datasets does

    with open_any(str(file), "rt", encoding="utf-8", compression="infer") as stream:
        first = next(csv.reader(stream, **options), [])
    text = (config.text,) if isinstance(config.text, str) else config.text or ("text",)
    wanted = [*text, config.label or "label"]
    known = {*_TEXT_COLUMNS, *_LABEL_COLUMNS, *wanted}
    if known & set(first) or len(first) != len(wanted):
        return options, ()
    note = f"{file.name} has no header line; its columns are read as {', '.join(wanted)}"
    return {**options, "column_names": wanted}, (note,)


# --- columns and labels ------------------------------------------------------------------------


def _input_columns(config: DataConfig, modality: Modality, rows: Dataset) -> tuple[str, ...]:
    if modality == "image":
        return (_column(config.image, _IMAGE_COLUMNS, rows, "image"),)
    if isinstance(config.text, tuple):
        if len(config.text) not in (1, 2):
            raise DataError(f"data.text names {len(config.text)} columns; name one or two")
        return tuple(_column(name, (), rows, "text") for name in config.text)
    return (_column(config.text, _TEXT_COLUMNS, rows, "text"),)


def _column(name: str | None, usual: tuple[str, ...], rows: Dataset, what: str) -> str:
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


def _label_values(
    config: DataConfig, label: str, rows: Dataset
) -> tuple[list[str], dict[Any, int]]:
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


def _labelled(
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


# --- splits and limits -------------------------------------------------------------------------


def _choose_splits(
    raw: Mapping[str, Dataset], config: DataConfig, need_train: bool
) -> tuple[Dataset | None, Dataset]:
    """The two named splits; a lone split stands for both and is divided later."""
    if len(raw) == 1:
        return None, next(iter(raw.values()))
    for what, name, needed in (("train", config.train, need_train), ("eval", config.eval, True)):
        if needed and name not in raw:
            raise DataError(f"data.{what}: there is no split {name!r}{nearest(name, list(raw))}")
    return raw.get(config.train) if need_train else None, raw[config.eval]


def _split(rows: Dataset | None, config: DataConfig) -> tuple[Dataset, Dataset]:
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


def _limit(rows: Dataset | None, limit: int | None, seed: int) -> Dataset | None:
    if rows is None or limit is None or len(rows) <= limit:
        return rows
    return rows.shuffle(seed=seed).select(range(limit))


def _check_classes(rows: Dataset | None, names: list[str], side: str, config: DataConfig) -> None:
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
