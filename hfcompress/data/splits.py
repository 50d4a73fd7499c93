"""The side to train on and the side to measure on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from datasets import Dataset

from hfcompress.config import nearest
from hfcompress.data.config import DataConfig
from hfcompress.errors import DataError


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
