"""Stored vectors: how many bytes each way of storing takes, and what it loses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hfcompress.report.rows import Row, metric_text, number, points_text, share_text
from hfcompress.report.table import markdown_text

HEAD = ("model", "stored as", "bytes a vector", "metric", "drop, points", "neighbours kept")
CAPTION = (
    "The metric on stored vectors. Their drop and the neighbours that they keep are against the "
    "same model's float32 vectors of all dimensions."
)


def stored_lines(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The cells of a table with a line for each way in which each row's vectors are stored."""
    return [line for row in rows for line in _lines(row)]


def _lines(row: Row) -> Iterator[tuple[str, ...]]:
    for part in row.get("stored_vectors") or ():
        metric, drop = str(part.get("metric")), number(part, "drop")
        size = number(part, "vector_bytes")
        yield (
            str(row.get("method") or "dense"),
            f"{part.get('precision')}, {part.get('dimensions')} values",
            f"{size or 0:,.0f} of {number(part, 'float32_bytes') or 0:,.0f}",
            metric_text(metric, number(part, "value")),
            points_text(metric, None if drop is None else -drop),
            share_text(part, "agreement"),
        )


def stored_table(rows: Sequence[Row]) -> str:
    """`stored_lines` as Markdown with its caption; empty where no vectors were stored."""
    lines = stored_lines(rows)
    if not lines:
        return ""
    cells = [" | ".join(map(markdown_text, line)) for line in lines]
    table = [" | ".join(HEAD), "---|---" + "|---:" * 4, *cells]
    return "\n".join([*(f"| {line} |" for line in table), "", CAPTION])
