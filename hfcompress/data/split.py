"""Sides of a data set: which splits are trained on and measured, and how a lone one is divided."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset

from hfcompress.config import nearest_of_all
from hfcompress.data.config import DataConfig
from hfcompress.errors import DataError


def choose_splits(
    raw: Mapping[str, Dataset], config: DataConfig, need_train: bool
) -> dict[str, Dataset]:
    """The splits to measure and to train on; a lone split is both and is divided later.

    The training split is given wherever it exists: its rows tell which classes there are.
    """
    if len(raw) == 1:
        return {"eval": next(iter(raw.values()))}
    for what, name, needed in (("train", config.train, need_train), ("eval", config.eval, True)):
        if needed and name not in raw:
            raise DataError(
                f"data.{what}: there is no split {name!r}{nearest_of_all(name, list(raw))}"
            )
    found = {"eval": raw[config.eval]}
    return {**found, "train": raw[config.train]} if config.train in raw else found


def divided(
    sides: Mapping[str, Dataset], config: DataConfig, need_train: bool
) -> dict[str, Dataset | None]:
    """The sides ``train`` and ``eval``, made of a lone one where both are needed, and limited.

    Args:
        sides: from `choose_splits`, perhaps with rows left out.
        config: how a lone side is divided, and how many rows are kept.
        need_train: a step trains or calibrates.
    """
    train = sides.get("train") if need_train else None
    measured: Dataset = sides["eval"]
    if train is None and need_train:
        train, measured = split(measured, config)
    return {
        "train": limit(train, config.max_train, config.seed),
        "eval": limit(measured, config.max_eval, config.seed),
    }


def split(rows: Dataset | None, config: DataConfig) -> tuple[Dataset, Dataset]:
    """Divide a lone split, whole groups at a time where a group column is named.

    Each class of two rows or more is on both sides, unless whole groups move.
    """
    assert rows is not None
    if config.group is not None:
        return _split_groups(rows, config.group, config)
    if len(rows) < 2:
        raise DataError(f"data: {len(rows)} usable rows cannot be split in train and eval")
    numbered = Dataset.from_dict({"row": range(len(rows))})
    parts = numbered.train_test_split(test_size=config.eval_fraction, seed=config.seed)
    sides = [list(parts[name]["row"]) for name in ("train", "test")]
    labels = rows["label"][:] if "label" in rows.column_names else []
    # Rows without labels, or with other ones than one class each.
    if not labels or not all(isinstance(label, int) for label in labels):
        return rows.select(sides[0]), rows.select(sides[1])
    train, measured = _balanced(sides[0], sides[1], labels, config.eval_fraction)
    return rows.select(train), rows.select(measured)


def _balanced(
    train: list[int], measured: list[int], labels: list[int], fraction: float
) -> tuple[list[int], list[int]]:
    """The sides with rows moved of classes of two rows or more that are on one side only."""
    sides: list[dict[int, list[int]]] = [{}, {}]
    for side, rows in zip(sides, (train, measured), strict=True):
        for row in rows:
            side.setdefault(labels[row], []).append(row)
    moved: list[list[int]] = [[], []]
    for source, share in ((0, fraction), (1, 1 - fraction)):
        for number in sides[source].keys() - sides[1 - source].keys():
            rows = sides[source][number]
            if len(rows) > 1:
                moved[source] += rows[-min(len(rows) - 1, max(1, round(share * len(rows)))) :]
    gone = set(moved[0] + moved[1])
    return (
        [row for row in train if row not in gone] + moved[1],
        [row for row in measured if row not in gone] + moved[0],
    )


def _split_groups(rows: Dataset, column: str, config: DataConfig) -> tuple[Dataset, Dataset]:
    groups = rows[column][:]
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


def absent_classes(sides: Mapping[str, Dataset | None], names: Sequence[str]) -> tuple[str, ...]:
    """One sentence for each side that has no row of some class."""
    notes = []
    for side, rows in sides.items():
        present = set() if rows is None else set(rows["label"][:])
        absent = [name for number, name in enumerate(names) if number not in present]
        if rows is not None and absent:
            shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
            notes.append(f"the {side} side has no row with the label {shown}")
    return tuple(notes)


def _shuffled(group: str, seed: int) -> str:
    # A hash instead of a shuffle: adding a group moves no other group to the other side.
    return hashlib.sha256(f"{seed}:{group}".encode()).hexdigest()


def limit(rows: Dataset | None, most: int | None, seed: int) -> Dataset | None:
    """At most so many rows, drawn by the seed."""
    if rows is None or most is None or len(rows) <= most:
        return rows
    return rows.shuffle(seed=seed).select(range(most))


def limit_groups(rows: Dataset | None, column: str, most: int | None, seed: int) -> Dataset | None:
    """At most so many rows, whole groups of them, drawn by the seed; one group at least.

    Args:
        rows: of one side.
        column: rows of a group have the same value there.
        most: how many rows; None keeps all.
        seed: of the drawing.
    """
    if rows is None or most is None or len(rows) <= most:
        return rows
    groups = [str(group) for group in rows[column][:]]
    sizes = Counter(groups)
    order = sorted(sizes, key=lambda group: _shuffled(group, seed))
    totals = np.cumsum([sizes[group] for group in order])
    chosen = set(order[: max(1, int((totals <= most).sum()))])
    return rows.select([place for place, group in enumerate(groups) if group in chosen])


def check_classes(
    rows: Dataset | None, names: Sequence[str], side: str, config: DataConfig
) -> None:
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
