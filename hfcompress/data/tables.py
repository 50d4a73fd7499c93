"""How a text file of rows is written: its encoding, its delimiter, its header line."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Literal, TypeAlias

from hfcompress.data.config import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    TEXT_COLUMNS,
    DataConfig,
)
from hfcompress.errors import DataError
from hfcompress.models.loading import Modality

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CHUNK = 1 << 20
_SAMPLE_ROWS = 500
_DELIMITERS = (",", ";", "\t", "|")
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_IDENTIFIER = re.compile(r"[^\W\d]\w*([ _.-]\w+){0,2}")

Quoting: TypeAlias = Literal[0, 3]
"""``csv.QUOTE_MINIMAL`` or ``csv.QUOTE_NONE``."""


@dataclass(frozen=True)
class TableFormat:
    """How a delimited file is written.

    Attributes:
        encoding: of its text.
        delimiter: between fields.
        quoting: a constant of `csv`.
        columns: their names, from the header line or the config.
        has_header: whether the first line names the columns.
        notes: what was assumed, one sentence each.
    """

    encoding: str
    delimiter: str
    quoting: Quoting
    columns: tuple[str, ...]
    has_header: bool
    notes: tuple[str, ...]


def find_encoding(file: Path) -> tuple[str, tuple[str, ...]]:
    """The encoding of a text file, compressed or not, and a note where it is a guess.

    Raises:
        DataError: it is not UTF-8, has no byte order mark, and is not like Western 8-bit text.
    """
    head, is_utf8, high = b"", True, b""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _open(file) as stream:
        while chunk := stream.read(_CHUNK):
            head = head or chunk
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError:
                is_utf8, high = False, chunk
                break
        try:
            decoder.decode(b"", final=is_utf8)
        except UnicodeDecodeError:
            is_utf8, high = False, head
    marked = next((name for mark, name in _BOMS if head.startswith(mark)), None)
    if marked is not None:
        return marked, ()
    if zeros := head[:_CHUNK].count(0):
        side = "le" if head[1::2].count(0) > zeros // 2 else "be"
        return f"utf-16-{side}", (f"{file.name} is read as UTF-16",)
    if is_utf8:
        return "utf-8", ()
    # In Western 8-bit text accented letters stand alone or in pairs between ASCII letters.
    runs = re.findall(rb"[\x80-\xff]+", high)
    if sum(len(run) for run in runs if len(run) > 2) > 0.1 * sum(map(len, runs)):
        raise DataError(
            f"data: {file.name} is not UTF-8 text and its encoding is not known; save it as UTF-8"
        )
    unused = re.search(rb"[\x81\x8d\x8f\x90\x9d]", high)
    name = "latin-1" if unused else "cp1252"
    return name, (f"{file.name} is not UTF-8 and is read as {name}",)


def _open(file: Path) -> IO[bytes]:
    from fsspec.core import open as open_any  # understands the compressions that datasets does

    opened: IO[bytes] = open_any(str(file), "rb", compression="infer")
    return opened


def table_format(file: Path, config: DataConfig, modality: Modality) -> TableFormat:
    """How a file of comma, semicolon, tab or bar separated values is written.

    Raises:
        DataError: an unknown encoding, a column that occurs twice, or rows of more fields than
            the header line.
    """
    encoding, notes = find_encoding(file)
    named = _names(config, modality)
    tabs = ".tsv" in file.suffixes
    delimiters = ("\t", *(mark for mark in _DELIMITERS if mark != "\t")) if tabs else _DELIMITERS
    samples = {mark: _sample(file, encoding, mark, _quoting(tabs, mark)) for mark in delimiters}
    delimiter = _best_delimiter(samples, {*named, *_usual(modality), *LABEL_COLUMNS})
    rows = samples[delimiter]
    if rows and re.fullmatch("sep=.?", rows[0][0]):
        raise DataError(f"data: {file.name} begins with a line {rows[0][0]!r}; remove that line")
    if delimiter != delimiters[0]:
        notes = (*notes, f"{file.name} separates its fields by {_NAMES[delimiter]}")
    header = tuple(field.strip() for field in rows[0]) if rows else ()
    if rows and not _is_header(rows, named, modality):
        note = f"{file.name} has no header line; its columns are read as {', '.join(named)}"
        header, notes, has_header = tuple(named), (*notes, note), False
    else:
        header = tuple(name or f"unnamed {place}" for place, name in enumerate(header))
        has_header = True
    _check_rows(file, header, rows)
    quoting = _quoting(tabs, delimiter)
    return TableFormat(encoding, delimiter, quoting, header, has_header, notes)


def _quoting(tabs: bool, delimiter: str) -> Quoting:
    """Quotes are text in a file of tab separated values."""
    return 3 if tabs and delimiter == "\t" else 0


def _usual(modality: Modality) -> tuple[str, ...]:
    return TEXT_COLUMNS if modality == "text" else IMAGE_COLUMNS


def _names(config: DataConfig, modality: Modality) -> list[str]:
    """The columns of a file without a header line, in order."""
    given = config.text if modality == "text" else config.image
    inputs = (given,) if isinstance(given, str) else given or (_usual(modality)[0],)
    labels = (config.label,) if isinstance(config.label, str) else (config.label or ("label",))
    return [*inputs, *labels]


def _sample(file: Path, encoding: str, delimiter: str, quoting: Quoting) -> list[list[str]]:
    with _open(file) as stream, io.TextIOWrapper(stream, encoding, newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, quoting=quoting)
        try:
            return list(islice((row for row in reader if row), _SAMPLE_ROWS))
        except csv.Error:  # a field beyond the reader's limit
            return []


def _best_delimiter(samples: dict[str, list[list[str]]], known: set[str]) -> str:
    """The delimiter whose header line names a known column; else one that gives even rows."""
    known = {name.casefold() for name in known}
    for mark, rows in samples.items():
        if rows and len(rows[0]) > 1 and known & {part.strip().casefold() for part in rows[0]}:
            return mark
    for mark, rows in samples.items():
        if rows and len({len(row) for row in rows}) == 1 < len(rows[0]):
            return mark
    return next(iter(samples))


def _is_header(rows: list[list[str]], named: Sequence[str], modality: Modality) -> bool:
    """Whether the first line names the columns, known names or others."""
    first, rest = [field.strip() for field in rows[0]], rows[1:]
    known = {name.casefold() for name in (*_usual(modality), *LABEL_COLUMNS, *named)}
    if known & set(map(str.casefold, first)) or len(first) != len(named):
        return True
    labels = [row[-1].strip().casefold() for row in rest if row]
    own = first[-1].casefold()
    if not labels or own in labels or _is_number(own):
        return False
    if all(map(_is_number, filter(None, labels))):
        return True
    named_like = all(_IDENTIFIER.fullmatch(field) for field in first)
    alike = sum(bool(_IDENTIFIER.fullmatch(row[0].strip())) for row in rest if row)
    repeats = len(set(labels)) <= len(labels) / 2
    return named_like and (repeats or alike <= len(rest) / 2)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_rows(file: Path, header: tuple[str, ...], rows: list[list[str]]) -> None:
    double = next((name for name in header if header.count(name) > 1), None)
    if double is not None:
        raise DataError(f"data: {file.name} has two columns named {double!r}; rename one of them")
    long = next((place for place, row in enumerate(rows) if len(row) > len(header)), None)
    if long is not None:
        raise DataError(
            f"data: row {long + 1} of {file.name} has {len(rows[long])} fields and the header "
            f"line {len(header)}; put quotes around fields that contain the delimiter"
        )
