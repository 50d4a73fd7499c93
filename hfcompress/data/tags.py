"""Words with a tag each: reading them from the columns of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from datasets import ClassLabel, Dataset, Features, List, Value

from hfcompress.data.columns import find_column, one_label
from hfcompress.data.config import DataConfig
from hfcompress.errors import DataError
from hfcompress.models.labels import label_name, numbers_of

WORD_COLUMNS = ("tokens", "words", "text", "sentence")
TAG_COLUMNS = ("ner_tags", "tags", "ner", "labels", "label", "pos_tags")
UNLABELLED = -100
Tags = list[str | None]
"""The tag of each word; None for a word without one."""


def tag_columns(config: DataConfig, rows: Dataset) -> tuple[str, str]:
    """Return the columns of words and of tags.

    Raises:
        DataError: a column that does not exist, or two columns of text.
    """
    if isinstance(config.text, tuple) and len(config.text) != 1:
        raise DataError(f"data.text names {len(config.text)} columns; name the one with words")
    named = config.text[0] if isinstance(config.text, tuple) else config.text
    words = find_column(named, WORD_COLUMNS, rows, "text")
    return words, find_column(one_label(config), TAG_COLUMNS, rows, "label")


def read_tags(
    rows: Dataset, words: str, tags: str, config: DataConfig, side: str
) -> tuple[list[list[str]], list[Tags]]:
    """Return the words and the tags of each row.

    Both columns hold lists, or texts that are divided at spaces.

    Raises:
        DataError: a row whose words and tags differ in number; something else than words or tags.
    """
    names = _names(rows, tags)
    found_words, found_tags = [], []
    for place, (given, marked) in enumerate(zip(rows[words][:], rows[tags][:], strict=True)):
        row = f"row {place} of the {side} side"
        parts, own = _listed(given, words, row), _listed(marked, tags, row)
        if len(parts) != len(own):
            raise DataError(
                f"data: {row} has {len(parts)} words in {words!r} and {len(own)} tags in "
                f"{tags!r}; give one tag for each word"
            )
        found_words.append([str(part) for part in parts])
        found_tags.append([_renamed(_tag(one, names), config) for one in own])
    return found_words, found_tags


def _names(rows: Dataset, column: str) -> list[str] | None:
    """The names of numbered tags; None where the column does not say them."""
    feature = rows.features[column]
    inner = feature.feature if isinstance(feature, List) else feature
    return [str(name) for name in inner.names] if isinstance(inner, ClassLabel) else None


def _listed(value: object, column: str, row: str) -> Sequence[object]:
    if isinstance(value, str):
        return value.split()
    if isinstance(value, list):
        return value
    raise DataError(
        f"data: {row} has {value!r} in {column!r}, which is neither a list nor a text; give words "
        f"and tags as lists"
    )


def _tag(value: object, names: list[str] | None) -> str | None:
    if value is None or value == UNLABELLED or value == str(UNLABELLED):
        return None
    if names is not None and isinstance(value, int):
        return names[value] if value >= 0 else None  # -1 is how datasets marks a missing class
    return label_name(value) or None


def _renamed(name: str | None, config: DataConfig) -> str | None:
    if name is None or not isinstance(config.labels, Mapping):
        return name
    renamed = {str(old): new for old, new in config.labels.items()}
    new = renamed.get(name, name)
    return None if new is None else str(new)


def tag_names(
    sides: Sequence[Sequence[Tags]], rows: Dataset, column: str, config: DataConfig
) -> list[str]:
    """Return all tags in order: as stated, by number, or by name behind ``O``.

    Raises:
        DataError: fewer than two tags, or one that ``data.labels`` does not list.
    """
    present = {name for tags in sides for row in tags for name in row if name is not None}
    if isinstance(config.labels, tuple):
        listed = [label_name(item) for item in config.labels]
        unknown = sorted(present - set(listed))
        if unknown:
            raise DataError(
                f"data.labels does not list the tag {unknown[0]!r} of {column!r}; list all tags, "
                f"or map it to null to leave its words out"
            )
        return listed
    known = [] if isinstance(config.labels, Mapping) else (_names(rows, column) or [])
    if len({*known, *present}) < 2:
        raise DataError(
            f"data: {column!r} has {len(present)} different tags ({', '.join(present) or 'none'}); "
            f"tagging needs two"
        )
    added = sorted(present - set(known), key=lambda name: (name != "O", name))
    numbers = numbers_of(added)
    if numbers is not None:
        added = [name for _, name in sorted(zip(numbers, added, strict=True))]
    return [*known, *added]


def tagged_rows(
    words: list[list[str]], tags: list[Tags], names: Sequence[str], column: str
) -> Dataset:
    """Return rows of words (column ``column``) and of tag numbers (column ``label``)."""
    places = {name: number for number, name in enumerate(names)}
    labels = [[UNLABELLED if tag is None else places[tag] for tag in row] for row in tags]
    features = Features({column: List(Value("string")), "label": List(Value("int64"))})
    return Dataset.from_dict({column: words, "label": labels}, features=features)
