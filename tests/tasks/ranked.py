"""Queries with passages of `tiny_tokenizer`'s words: a passage with a good word is relevant."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import FILLER, sentence, tiny_tokenizer

PAIRS = [("the film", "a good plot"), ("the cast", "bad music was dull"), ("a scene", "warm story")]


def ranked_rows(queries: int = 8, passages: int = 5, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of queries, each with one or two relevant passages."""
    generator = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(queries):
        query = f"{FILLER[number % len(FILLER)]} {FILLER[number // len(FILLER)]}"
        relevant = generator.sample(range(passages), generator.randint(1, 2))
        rows += [
            {"query": query, "passage": sentence(generator, good), "label": int(good)}
            for good in (n in relevant for n in range(passages))
        ]
    return rows


def write_rankings(path: Path, **options: Any) -> Path:
    """Write `ranked_rows` as a TSV file; returns the path."""
    rows = ranked_rows(**options)
    lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def reranker_folder(folder: Path, labels: int = 1, **config: Any) -> Path:
    """Save a tiny classifier of pairs whose logits differ, and its tokenizer."""
    model = tiny_bert(labels, **{"seed": 1, "initializer_range": 0.3, **config})
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
