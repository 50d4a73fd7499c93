"""``weights.jsonl``: what a run keeps of the weights of each row, read entry by entry.

Each line has a key and an entry of some ten kilobytes. A report shows a few of them; the rest stays
on disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from hfcompress.sweep.digests import checked_lines
from hfcompress.utils import Fields

_ENTRY = b', "entry": '


class KeptWeights(Mapping[str, Fields]):
    """The entries of ``weights.jsonl`` by key, the last of each; read when one is asked for.

    A line that is not an entry, such as one that a crash cut short, is left out.

    Args:
        path: the file; nothing where there is none.
        former: entries that a file of an older version holds.

    Attributes:
        damaged: numbers of the lines that are left out.
    """

    def __init__(self, path: Path, former: Mapping[str, Fields] | None = None) -> None:
        self._path = path
        self._former = dict(former or {})
        self._places: dict[str, int] = {}
        self.damaged: list[int] = []
        for number, begin, line in checked_lines(path):
            key = None if line is None else _key(line)
            if key is None:
                self.damaged.append(number)
            else:
                self._places[key] = begin

    def __getitem__(self, key: str) -> Fields:
        if key not in self._places:
            return self._former[key]
        with self._path.open("rb") as stream:
            stream.seek(self._places[key])
            try:
                entry: Fields = json.loads(stream.readline())["entry"]
            except (ValueError, RecursionError):
                raise KeyError(key) from None
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter({**self._former, **self._places})

    def __len__(self) -> int:
        return len(self._former.keys() | self._places.keys())


def _key(line: bytes) -> str | None:
    """The key that a line begins with; its entry is not parsed."""
    try:
        return str(json.loads(line[: line.index(_ENTRY)] + b"}")["key"])
    except (ValueError, KeyError, TypeError):
        return None
