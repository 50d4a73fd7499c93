"""One score for a query and a passage, read together (a cross-encoder), to rank passages by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from hfcompress.config import nearest
from hfcompress.data.config import DataConfig
from hfcompress.errors import DataError, ModelError
from hfcompress.measure.bootstrap import Value, of_mean
from hfcompress.measure.ranking import (
    RANKING_METRICS,
    by_query,
    is_ranking_metric,
    ranked_relevance,
    ranking_metric,
)
from hfcompress.models.loading import AutoClass, Modality, Processor
from hfcompress.models.outputs import OutputKind
from hfcompress.tasks.task import ByUnits

if TYPE_CHECKING:  # they import torch, transformers and datasets
    from datasets import Dataset
    from transformers import PreTrainedConfig

    from hfcompress.data.encode import Encoded
    from hfcompress.data.load import Examples

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Rankings:
    """What scores of pairs are compared with.

    Attributes:
        queries: places of the pairs of each query that has a relevant passage.
        relevance: of each pair, 0 where the passage is not relevant.
    """

    queries: list[NDArray[np.int64]]
    relevance: NDArray[np.float64]

    @classmethod
    def of(cls, queries: NDArray[np.int64], relevance: NDArray[np.float64]) -> Rankings:
        """Group pairs by query; queries without a relevant passage are left out.

        Args:
            queries: number of each pair's query.
            relevance: of each pair.

        Raises:
            DataError: no query is left.
        """
        found = [places for places in by_query(queries) if relevance[places].any()]
        if not found:
            raise DataError("no query has a relevant passage, so rankings cannot be measured")
        return cls(found, relevance)

    def check(self, scores: Scores) -> None:
        """Refuse scores of another number of pairs, several for a pair, or NaN.

        Raises:
            DataError: such scores.
        """
        if scores.shape != (len(self.relevance), 1):
            raise DataError(
                f"got outputs of shape {scores.shape} for {len(self.relevance)} pairs; a reranker "
                f"gives one score for each of the same rows"
            )
        if not np.isfinite(scores).all():
            raise DataError("a score is NaN or infinity; check the model's weights and dtype")


class TextRanking(ByUnits):
    """A score for each query and passage; a `hfcompress.tasks.task.Task`.

    The passages of a query are the rows that have the query.
    """

    name = "text-ranking"
    modality: Modality = "text"

    def metrics(self, kind: OutputKind = "ranking") -> tuple[str, ...]:
        """Return the ranking metrics."""
        return RANKING_METRICS

    def kind(self, config: PreTrainedConfig) -> OutputKind:
        """Return that an output is the score of a pair."""
        return "ranking"

    def auto_class(self) -> AutoClass:
        """Return the class that loads CrossEncoder folders, and encoders for a new head."""
        from hfcompress.models.cross_encoder import AutoCrossEncoder

        return cast(AutoClass, AutoCrossEncoder)

    def check_head(self, config: PreTrainedConfig, model: str, kind: OutputKind) -> None:
        """Refuse a head with several outputs.

        Raises:
            ModelError: such a head.
        """
        if config.num_labels != 1:
            raise ModelError(
                f"the head of model {model!r} gives {config.num_labels} labels and a reranker one "
                f"score; add a finetune step, which trains a new head, or write task: "
                f"text-classification"
            )

    def load(
        self,
        config: DataConfig,
        need_train: bool,
        splits: Mapping[str, Dataset] | None = None,
    ) -> Examples:
        """Read queries, passages and their relevance; see `hfcompress.data.pairs.ranked_examples`.

        Raises:
            SourceError, DataError: as `ranked_examples`.
        """
        from hfcompress.data.pairs import ranked_examples

        return ranked_examples(config, need_train, splits)

    def encode(
        self, examples: Examples, rows: Dataset, processor: Processor, max_length: int | None
    ) -> Encoded:
        """Encode each query with its passage; labels are relevances from 0 to 1, [rows, 1]."""
        from hfcompress.data.columns import with_labels
        from hfcompress.data.encode import encode
        from hfcompress.data.pairs import unique_texts

        train = examples.train
        most = max([1.0, *(train["label"][:] if train is not None else ())])
        _, (queries,) = unique_texts([rows[examples.columns[0]][:]])
        labels = [[value / most] for value in rows["label"][:]]
        found = encode(examples, with_labels(rows, labels), processor, max_length)
        return replace(found, groups=queries)

    def references(self, data: Encoded, labels: Sequence[str]) -> Rankings:
        """Return the places of each query's pairs, and their relevance.

        Raises:
            DataError: no query has a relevant passage.
        """
        assert data.groups is not None
        return Rankings.of(data.groups, data.labels.astype(np.float64)[:, 0])

    def units(self, metric: str, outputs: Scores, references: object) -> NDArray[np.float64]:
        """Return the metric of each query, [queries, 1].

        Raises:
            DataError: another metric, or scores that do not fit.
        """
        return _by_query(metric, outputs, cast(Rankings, references))[:, None]

    def of_units(self, metric: str, units: NDArray[np.float64]) -> Value:
        """Return the mean over some queries."""
        return of_mean(units[:, 0])

    def agreement(self, outputs: Scores, dense: Scores, references: object) -> float:
        """Return the share of queries with the same first passage."""
        asked = cast(Rankings, references)
        first, theirs = (_first_passages(scores, asked) for scores in (outputs, dense))
        return float((first == theirs).mean())


def _by_query(name: str, scores: Scores, asked: Rankings) -> NDArray[np.float64]:
    """Return a metric of each query."""
    asked.check(scores)
    if not is_ranking_metric(name):
        raise DataError(f"{name!r} is not a metric of text-ranking{nearest(name, RANKING_METRICS)}")
    values = scores[:, 0].astype(np.float64)
    return np.array([
        ranking_metric(name, ranked_relevance(values[places], asked.relevance[places]))
        for places in asked.queries
    ])  # fmt: skip


def _first_passages(scores: Scores, asked: Rankings) -> NDArray[np.int64]:
    return np.array([places[scores[places, 0].argmax()] for places in asked.queries])


TEXT_RANKING = TextRanking()
