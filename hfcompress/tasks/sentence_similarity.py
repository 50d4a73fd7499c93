"""One vector for each text, compared by cosine: scored pairs of sentences, queries and passages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from hfcompress.config import nearest
from hfcompress.data.config import DataConfig
from hfcompress.errors import ConfigError, DataError
from hfcompress.measure.bootstrap import Value, of_mean
from hfcompress.measure.ranking import (
    RANKING_METRICS,
    is_ranking_metric,
    kept_neighbours,
    ranked_relevance,
    ranking_metric,
    spearman,
    unit_vectors,
)
from hfcompress.measure.vectors import EmbeddingConfig, read_vectors, store_vectors
from hfcompress.models.loading import AutoClass, Modality, Processor
from hfcompress.models.outputs import OutputKind
from hfcompress.tasks.task import ByUnits

if TYPE_CHECKING:  # they import torch, transformers and datasets
    from datasets import Dataset
    from transformers import PreTrainedConfig

    from hfcompress.data.encode import Encoded
    from hfcompress.data.load import Examples

Vectors = NDArray[np.float32]
SIMILARITY_METRICS = ("spearman", "pearson")
_METRICS: dict[str, tuple[str, ...]] = {
    "similarity": (*SIMILARITY_METRICS, "ndcg@10", *RANKING_METRICS),
    "retrieval": ("ndcg@10", *RANKING_METRICS, *SIMILARITY_METRICS),
}


@dataclass(frozen=True)
class Pairs:
    """What vectors of texts are compared with.

    Attributes:
        first, second: numbers of each pair's texts.
        scores: of each pair.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    scores: NDArray[np.float64]

    def check(self, vectors: Vectors) -> None:
        """Refuse vectors of another number of texts, or NaN.

        Raises:
            DataError: such vectors.
        """
        texts = 1 + int(max(self.first.max(), self.second.max()))
        if vectors.ndim != 2 or len(vectors) != texts:
            raise DataError(f"got {len(vectors)} vectors for {texts} texts; use the same rows")
        if not np.isfinite(vectors).all():
            raise DataError("a vector has NaN or infinity; check the model's weights and dtype")


class SentenceSimilarity(ByUnits):
    """One vector for each text; a `hfcompress.tasks.task.Task`.

    A side of the data is a table of pairs; each different text is encoded once.
    """

    name = "sentence-similarity"
    modality: Modality = "text"

    def metrics(self, kind: OutputKind = "similarity") -> tuple[str, ...]:
        """Return rank correlation for scored pairs, ranking metrics for queries and passages."""
        return tuple(dict.fromkeys(_METRICS[kind]))

    def kind(self, config: PreTrainedConfig) -> OutputKind:
        """Return that outputs are vectors."""
        return "similarity"

    def auto_class(self) -> AutoClass:
        """Return the class that loads sentence-transformers' folders."""
        from hfcompress.models.modeling_embedding import AutoEmbeddingModel

        return cast(AutoClass, AutoEmbeddingModel)

    def check_head(self, config: PreTrainedConfig, model: str, kind: OutputKind) -> None:
        """Take any encoder: what follows its token states was read with it."""

    def load(
        self,
        config: DataConfig,
        need_train: bool,
        splits: Mapping[str, Dataset] | None = None,
    ) -> Examples:
        """Read pairs of texts with scores, or take those of ``splits``.

        Raises:
            SourceError, DataError: as `hfcompress.data.load.load_examples`; no query with a
                relevant passage.
        """
        from hfcompress.data.pairs import pair_examples

        return pair_examples(config, need_train, splits)

    def encode(
        self, examples: Examples, rows: Dataset, processor: Processor, max_length: int | None
    ) -> Encoded:
        """Encode the different texts of both columns."""
        from transformers import PreTrainedTokenizerBase

        from hfcompress.data.encode import encode_texts
        from hfcompress.data.pairs import unique_texts

        texts, _ = unique_texts(rows[column][:] for column in examples.columns)
        encoded = encode_texts(texts, cast(PreTrainedTokenizerBase, processor), max_length)
        return replace(encoded, source=rows)

    def references(self, data: Encoded, labels: Sequence[str]) -> Pairs:
        """Return the pairs by the numbers of their texts, and their scores."""
        from hfcompress.data.pairs import unique_texts

        assert data.source is not None
        names = [name for name in data.source.column_names if name != "label"]
        _, (first, second) = unique_texts(data.source[name][:] for name in names)
        return Pairs(first, second, np.asarray(data.source["label"][:], np.float64))

    def units(self, metric: str, outputs: Vectors, references: object) -> NDArray[np.float64]:
        """Return the cosine and the score of each pair, [pairs, 2]; of a ranking metric its value
        for each query, [queries, 1].

        Raises:
            DataError: another metric, or vectors that do not fit.
        """
        pairs = cast(Pairs, references)
        pairs.check(outputs)
        unit = unit_vectors(outputs)
        if metric in SIMILARITY_METRICS:
            cosines = (unit[pairs.first] * unit[pairs.second]).sum(1).astype(np.float64)
            return np.stack([cosines, pairs.scores], axis=1)
        if not is_ranking_metric(metric):
            known = _METRICS["similarity"]
            raise DataError(
                f"{metric!r} is not a metric of sentence-similarity{nearest(metric, known)}"
            )
        return np.array(_by_query(metric, unit, pairs))[:, None]

    def of_units(self, metric: str, units: NDArray[np.float64]) -> Value:
        """Return the correlation of some pairs, or the mean over some queries."""
        if metric not in SIMILARITY_METRICS:
            return of_mean(units[:, 0])
        correlation = spearman if metric == "spearman" else _pearson
        return lambda chosen: correlation(units[chosen, 0], units[chosen, 1])

    def agreement(self, outputs: Vectors, dense: Vectors, references: object) -> float:
        """Return the share of each text's ten nearest neighbours that are kept."""
        return kept_neighbours(outputs, dense)


def check_storage(model: object, ways: Iterable[EmbeddingConfig]) -> None:
    """Refuse ways to store vectors that do not fit a model.

    Raises:
        ConfigError: a model that gives none, or more dimensions than its vectors have.
    """
    from hfcompress.models.modeling_embedding import EmbeddingModel

    for way in ways:
        if not isinstance(model, EmbeddingModel):
            raise ConfigError(
                "embedding says how vectors are stored, and the model gives none (task: "
                "sentence-similarity); leave it out"
            )
        way.check(model.vector_size)


def stored_qualities(
    metric: str, vectors: Vectors, references: object, ways: Sequence[EmbeddingConfig]
) -> list[dict[str, object]]:
    """Return what each way of storing vectors loses: bytes, and the metric with its interval, its
    drop against the vectors as they are, and the share of neighbours kept.

    Args:
        metric: its name.
        vectors: of the model, [texts, size].
        references: from `SentenceSimilarity.references`.
        ways: how they are stored.

    Raises:
        ConfigError: more dimensions than there are.
        DataError: as `SentenceSimilarity.metric`.
    """
    size, found = vectors.shape[1], []
    for way in ways:
        read = read_vectors(store_vectors(vectors, way), way, size)
        quality = SENTENCE_SIMILARITY.quality(metric, read, references, vectors)
        stored = {
            "precision": way.precision,
            "dimensions": way.dimensions or size,
            "vector_bytes": way.bytes(size),
            "float32_bytes": EmbeddingConfig().bytes(size),
        }
        found.append({**stored, **quality.to_dict()})
    return found


def _pearson(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    if not first.std() or not second.std():
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _by_query(name: str, unit: Vectors, pairs: Pairs) -> list[float]:
    """Return a ranking metric of each query, over all passages."""
    passages = np.unique(pairs.second)
    place = {int(number): at for at, number in enumerate(passages)}
    found = []
    for query in np.unique(pairs.first):
        relevance = np.zeros(len(passages))
        for at in np.flatnonzero(pairs.first == query):
            here = place[int(pairs.second[at])]
            relevance[here] = max(relevance[here], pairs.scores[at])
        scores = (unit[passages] @ unit[query]).astype(np.float64)
        if relevance.any():
            found.append(ranking_metric(name, ranked_relevance(scores, relevance)))
    if not found:
        raise DataError("no query has a relevant passage, so rankings cannot be measured")
    return found


SENTENCE_SIMILARITY = SentenceSimilarity()
