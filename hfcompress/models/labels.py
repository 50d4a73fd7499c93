"""Label names of data and of models: which mean the same class, and in which order."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hfcompress.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_WHOLE = re.compile(r"([+-]?\d+)\.0+")
_INTEGER = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
# Punctuation that tells names apart: C and C#, 5 and 5%.
_MEANINGFUL = "#%@&*"
_DEFAULT_NAME = re.compile(r"LABEL_(\d+)")


@dataclass(frozen=True)
class Alignment:
    """Which output of a model each label of the data means.

    Attributes:
        places: the model's class of each label of the data.
        names: every class in the model's order: the data's name where it has one.
        note: what was assumed, in one sentence; None where the names say it.
    """

    places: tuple[int, ...]
    names: tuple[str, ...]
    note: str | None = None

    @property
    def is_identity(self) -> bool:
        """Whether the data and the model have the same classes in the same order."""
        return self.places == tuple(range(len(self.names)))


def label_name(value: object) -> str:
    """A label's value as text: ``1.0`` and ``" 1 "`` are ``1``."""
    text = str(value).strip()
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def fold_label(name: str) -> str:
    """A label's name without case, spaces, underscores, hyphens and punctuation.

    Numbers keep their sign, and a name of punctuation alone stays as it is.
    """
    text = unicodedata.normalize("NFKC", label_name(name)).casefold()
    if _NUMBER.fullmatch(text):
        return text
    kept = "".join(
        part
        for part in text
        if part in _MEANINGFUL or not (part.isspace() or unicodedata.category(part)[0] in "PZC")
    )
    return kept or text


def label_key(*lists: Sequence[str]) -> Callable[[str], str]:
    """The most tolerant comparison that keeps the names of each list apart."""
    for key in (fold_label, str.casefold):
        if all(len({key(name) for name in names}) == len(set(names)) for names in lists):
            return key
    return str


def are_default_names(names: Sequence[str]) -> bool:
    """Whether a model's labels are those that transformers writes where nobody names them."""
    return all(name == f"LABEL_{number}" for number, name in enumerate(names))


def numbers_of(names: Sequence[str]) -> list[int] | None:
    """The labels as numbers, false and true as 0 and 1; None where one is a word."""
    words = {"false": "0", "true": "1"}
    booleans = {name.casefold() for name in names} <= words.keys()
    texts = [words[name.casefold()] if booleans else label_name(name) for name in names]
    return [int(text) for text in texts] if all(map(_INTEGER.fullmatch, texts)) else None


def align_labels(
    labels: Sequence[str], own: Sequence[str], new_head: bool = False
) -> Alignment | None:
    """Find the model's class of each of the data's labels.

    Names that are equal but for case, spaces and punctuation are the same label. Numbers are
    compared with the numbers in the model's names; otherwise they count its classes.

    Args:
        labels: the data's label names in order.
        own: the model's label names in order.
        new_head: a new head may be trained: one of another size is then preferred to a head of
            which some classes are not used.

    Returns:
        None where the labels do not correspond, and only a new head would fit them.

    Raises:
        DataError: numbers that may count the model's classes from 0 or from 1.
    """
    if new_head and len(labels) != len(own):
        return None
    key = label_key(labels, own)
    known = {key(name): place for place, name in enumerate(own)}
    if all(key(name) in known for name in labels):
        return _alignment([known[key(name)] for name in labels], labels, own)
    numbers = numbers_of(labels)
    if numbers is not None:
        return _align_numbers(numbers, labels, own)
    if are_default_names(own) and len(own) == len(labels):
        pairs = ", ".join(f"{number} as {name}" for number, name in enumerate(labels))
        note = (
            f"the model does not name its classes; its outputs are read in the data's order, "
            f"{pairs}; write data.labels in the model's order if it is another"
        )
        return _alignment(list(range(len(own))), labels, own, note)
    return None


def _align_numbers(
    numbers: Sequence[int], labels: Sequence[str], own: Sequence[str]
) -> Alignment | None:
    by_number = _numbers_in(own)
    if by_number is not None and set(numbers) <= by_number.keys():
        return _alignment([by_number[number] for number in numbers], labels, own)
    count, ascending = len(own), list(numbers) == sorted(numbers)
    if len(numbers) == count and not ascending:  # data.labels states the model's order
        return _alignment(list(range(count)), labels, own)
    if min(numbers) == 0 and max(numbers) < count:
        return _alignment(list(numbers), labels, own)
    if len(numbers) == count:
        pairs = ", ".join(f"{label} as {name}" for label, name in zip(labels, own, strict=True))
        note = f"labels are read in the order of the model's classes: {pairs}"
        return _alignment(list(range(count)), labels, own, note)
    if min(numbers) == 1 and max(numbers) == count:
        return _alignment([number - 1 for number in numbers], labels, own,
                          f"labels count the model's classes from 1: 1 is {own[0]}")  # fmt: skip
    if min(numbers) >= 1 and max(numbers) < count:
        raise DataError(
            f"labels {', '.join(labels)} may count the model's {count} classes from 0 or from 1; "
            f"write data.labels: {list(range(count))} or {list(range(1, count + 1))}"
        )
    return None


def _numbers_in(own: Sequence[str]) -> dict[int, int] | None:
    """The class of each number, where every name has one number of its own ("2 stars")."""
    found = [re.findall(r"-?\d+", name.replace("LABEL_", "")) for name in own]
    if any(len(parts) != 1 for parts in found) or are_default_names(own):
        return None
    places = {int(parts[0]): place for place, parts in enumerate(found)}
    return places if len(places) == len(own) else None


def _alignment(
    places: list[int], labels: Sequence[str], own: Sequence[str], note: str | None = None
) -> Alignment:
    names = [match[1] if (match := _DEFAULT_NAME.fullmatch(name)) else name for name in own]
    for place, label in zip(places, labels, strict=True):
        names[place] = label
    return Alignment(tuple(places), tuple(names), note)


def label_names(config: PreTrainedConfig) -> list[str]:
    """A model's label names in the order of its outputs."""
    names = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    return [names[number] for number in sorted(names)]


def unlike_labels(labels: Sequence[str], own: Sequence[str], model: str) -> str:
    """The sentence that refuses a model whose labels do not correspond to the data's."""
    shown = [", ".join(names[:8]) + (", ..." if len(names) > 8 else "") for names in (labels, own)]
    return (
        f"{model} has no trained classification head for these labels: the data have "
        f"{len(labels)} ({shown[0]}) and the model {len(own)} ({shown[1]}); map them "
        f"(data.labels: {{{labels[0]}: {own[0] if own else 'NAME'}, ...}}), add a finetune step, "
        f"which trains a new head, or give a model fine-tuned for these labels"
    )
