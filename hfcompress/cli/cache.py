"""``hfcompress cache``: list, verify and prune what runs keep to be used again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hfcompress.cli.display import Display
from hfcompress.errors import ConfigError
from hfcompress.storage.caches import (
    CacheEntry,
    cache_entries,
    cache_limit,
    find_damage,
    prune_cache,
)
from hfcompress.utils import parse_size, size_text


def cache_command(options: argparse.Namespace, console: Console) -> int:
    """Carry out ``hfcompress cache``; 1 where an entry that was verified is damaged.

    Raises:
        ConfigError: a size that cannot be read, or a negative age.
    """
    try:
        most = None if options.max_size is None else parse_size(options.max_size)
    except ValueError as error:
        raise ConfigError(f"--max-size: {error}") from None
    limit, removed = cache_limit(), list[CacheEntry]()
    if most is not None or options.older_than is not None:
        removed = prune_cache(options.older_than, most)
    entries = cache_entries()
    damage = _damage(entries, console, options.quiet) if options.verify else {}
    if options.json:
        listed = [
            {**entry.to_dict(), **({"damage": damage[entry.path]} if damage else {})}
            for entry in entries
        ]
        data = {"entries": listed, "removed": [str(one.path) for one in removed], "limit": limit}
        print(json.dumps(data, indent=2))
    else:
        _show(entries, removed, damage, limit, console)
    return 1 if any(damage.values()) else 0


def _show(
    entries: Sequence[CacheEntry],
    removed: Sequence[CacheEntry],
    damage: Mapping[Path, str | None],
    limit: int | None,
    console: Console,
) -> None:
    if removed:
        freed = size_text(sum(entry.bytes for entry in removed))
        console.print(f"removed {_count(removed)}, {freed}")
    if entries:
        table = Table()
        for column in ("kind", "state", "size", "last used", "contents", "key", "damage"):
            if column != "damage" or damage:
                table.add_column(column, overflow="fold")
        for entry in entries:
            used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
            state = "in use" if entry.is_in_use else entry.state
            cells = [entry.kind, state, size_text(entry.bytes), used, entry.contents, entry.key]
            table.add_row(*cells, *([damage[entry.path] or "none"] if damage else []))
        console.print(table)
    total = size_text(sum(entry.bytes for entry in entries))
    bound = "without a limit" if limit is None else f"{size_text(limit)} at most for each kind"
    console.print(f"{_count(entries)}, {total}; {bound} (HFCOMPRESS_CACHE_LIMIT)")
    for folder in sorted({str(entry.path.parent) for entry in entries}):
        console.print(f"in {folder}")


def _damage(entries: Sequence[CacheEntry], console: Console, quiet: bool) -> dict[Path, str | None]:
    """What is wrong with each entry's files; reads all of them."""
    found = {}
    with Display(console, quiet) as display:
        display.stage("reading what is kept")
        for done, entry in enumerate(entries, 1):
            found[entry.path] = find_damage(entry)
            display.work(done, len(entries))
    return found


def _count(entries: Sequence[CacheEntry]) -> str:
    return "1 entry" if len(entries) == 1 else f"{len(entries):,} entries"
