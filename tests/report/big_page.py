"""The page of many rows, which `make audit-page` looks at: python -m tests.report.big_page PAGE."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

from hfcompress.report.page import html_page


def rows(count: int) -> list[dict[str, Any]]:
    """Rows of four methods at random sparsities, the same each time."""
    generator = random.Random(0)
    found = []
    for index in range(count):
        sparsity, method = round(generator.random(), 4), generator.choice("abcd")
        value = 0.9 - 0.5 * sparsity**3 + generator.gauss(0, 0.01)
        found.append({
            "hash": f"{index:016x}", "index": index, "method": method, "metric": "accuracy",
            "settings": {"prune.method": method, "prune.sparsity": sparsity},
            "requested_sparsity": sparsity, "actual_sparsity": sparsity, "value": value,
            "low": value - 0.02, "high": value + 0.02, "drop": 0.9 - value, "n": 872,
            "bytes": int(4e6 * (1 - sparsity / 2)), "macs": 1e6, "agreement": 0.9,
        })  # fmt: skip
    return found


if __name__ == "__main__":
    text = "\n".join(f"step {number}: {'a long line ' * 20}" for number in range(50))
    page = html_page(rows(10_000), recipe_text=text, written_text=text)
    Path(sys.argv[1]).write_text(page, encoding="utf-8")
    print(f"{len(page.encode()):,} bytes")
