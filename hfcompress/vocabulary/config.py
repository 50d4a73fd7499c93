"""``VocabularyConfig``: which tokens stay."""

from __future__ import annotations

from pydantic import Field

from hfcompress.config import Config


class VocabularyConfig(Config):
    """Which tokens stay: those that the texts use, single characters and special tokens."""

    min_count: int = Field(
        1,
        ge=1,
        description="how often the texts must use a token; words of rarer ones are split further",
    )
