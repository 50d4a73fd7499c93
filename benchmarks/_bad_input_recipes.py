"""Damaged and hostile recipes."""

from __future__ import annotations

import copy
import random
from typing import Any

import yaml

from benchmarks._mutations import TEXTS, mutate_bytes, mutate_plain, nested, value

BOMBS = [
    "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "steps: *i\n",
    "steps: &s [*s]\n",
    "steps: " + "[" * 30_000,
    "steps: " + "{a: " * 3_000,
    "- " * 20_000 + "x\n",
    "? " * 5_000 + "x\n",
    "seed: " + "9" * 100_000 + "\n",
    "seed: 0x" + "f" * 100_000 + "\n",
    "seed: 1e" + "9" * 1000 + "\n",
    "name: " + "x" * 130_000 + "\n",
    'name: "' + "\\U0001f4a9" * 10_000 + '"\n',
    "grid: {prune.sparsity: [" + "0.1, " * 19_000 + "]}\n",
    "grid: [" + "{prune.sparsity: [0.1]}, " * 9_000 + "]\n",
    "".join(f"k{place}: 1\n" for place in range(15_000)),
    "<<: [" + "{a: 1}, " * 5_000 + "]\n",
    "seed: 2024-99-99\n",
    "seed: 1:2:3:4:5:6\n",
    "seed: !!python/object/apply:os.system ['touch canary.txt']\n",
    "seed: !!python/name:os.system\n",
    "seed: !!python/object/new:os.system ['touch canary.txt']\n",
    "seed: !!python/module:evil\n",
    "seed: !include /etc/passwd\n",
    "seed: !!binary aGVsbG8=\n",
    "seed: !!set {a, b}\n",
    "seed: !!timestamp 2001-12-14t21:59:43.10-05:00\n",
    "%YAML 9.9\n---\nseed: 1\n",
    "--- 1\n--- 2\n",
    "\ufeffseed: 1\n",
    "seed: \t1\n",
    "\x00",
    "measure: {metric: ./evil, trust_remote_code: true}\n",
    "measure: {metric: ./evil.py}\n",
    "measure: {metric: evil}\n",
    "measure: {metric: f1_macro, also: [./evil, ../evil.py, /tmp/evil]}\n",
    "model: {path: ./evil, trust_remote_code: true}\n",
]
"""Lines that take the place of a recipe's own fields of the same name."""


def mutate_recipe(text: str, draw: random.Random, runs: bool) -> tuple[bytes, str]:
    """A damaged recipe, and what was done to it.

    Args:
        text: a sound recipe.
        draw: decides.
        runs: it will be run, not only checked: leave it short.
    """
    kind = draw.random()
    if kind < 0.2:
        return mutate_bytes(text.encode(), draw)
    if kind < 0.4:
        return _with_lines(text, draw.choice(BOMBS), draw)
    data = yaml.safe_load(text)
    whats = []
    for _ in range(draw.choice([1, 1, 2, 4])):
        changed, what = _change(data, draw)
        whats.append(what)
        if not isinstance(changed, dict):
            data = changed
            break
        data = changed
    if runs and isinstance(data, dict) and draw.random() < 0.5:
        data["name"] = draw.choice(TEXTS)
    try:
        written = yaml.safe_dump(data, sort_keys=False, allow_unicode=draw.random() < 0.5)
    except (yaml.YAMLError, RecursionError, ValueError):
        written = str(data)
    return written.encode("utf-8", "surrogatepass"), "; ".join(whats)


def _change(data: Any, draw: random.Random) -> tuple[Any, str]:
    if draw.random() < 0.25 and isinstance(data, dict):
        data = copy.deepcopy(data)
        key = draw.choice([*data, "grid", "measure", "seed", "task", "name", "reference", "steps"])
        data[key] = value(draw) if draw.random() < 0.8 else nested(31, draw.random() < 0.5)
        return data, f"{key} = {repr(data[key])[:60]}"
    return mutate_plain(data, draw)


def _with_lines(text: str, lines: str, draw: random.Random) -> tuple[bytes, str]:
    key = lines.partition(":")[0]
    kept = text if draw.random() < 0.2 else _without_field(text, key)
    return (kept + "\n" + lines).encode("utf-8", "surrogatepass"), f"with {lines[:60]!r}"


def _without_field(text: str, field: str) -> str:
    """A recipe's text without a field of the top level."""
    lines, kept, inside = text.splitlines(), [], False
    for line in lines:
        if line and not line[0].isspace() and line[0] not in "#-]}":
            inside = line.startswith(f"{field}:")
        if not inside:
            kept.append(line)
    return "\n".join(kept)
