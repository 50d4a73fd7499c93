"""A tag for each word: entities (people, places), parts of speech."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from hfcompress.config import nearest
from hfcompress.data.config import DataConfig
from hfcompress.errors import DataError, ModelError
from hfcompress.measure.bootstrap import Value, of_sums
from hfcompress.measure.entities import (
    TagSet,
    entity_counts,
    entity_f1,
    entity_f1_macro,
    entity_precision,
    entity_recall,
    f1_of_types,
    tag_set,
)
from hfcompress.measure.evaluation import ClassAccuracy, agreement, predicted_classes
from hfcompress.models.loading import AutoClass, Modality, Processor
from hfcompress.tasks.outputs import Logits, OutputKind
from hfcompress.tasks.task import ByUnits

if TYPE_CHECKING:  # they import torch, transformers and datasets
    from datasets import Dataset
    from transformers import PreTrainedConfig

    from hfcompress.data.encode import Batch, Encoded
    from hfcompress.data.load import Examples
    from hfcompress.data.windows import Window

_ENTITY_METRICS: Mapping[str, Callable[[NDArray[np.float64]], float]] = MappingProxyType(
    {
        "f1": entity_f1,
        "precision": entity_precision,
        "recall": entity_recall,
        "f1_macro": entity_f1_macro,
    }
)
_METRICS = (*_ENTITY_METRICS, "accuracy")
# Columns of encoded rows that are not a model's inputs.
_EXAMPLE, _WORDS = "example", "words"


@dataclass(frozen=True)
class TaggedWords:
    """The tags of all words that are measured.

    Attributes:
        tags: of each word, sentence after sentence.
        order: places of the words in the table of outputs.
        starts: place of each sentence's first word in ``tags``, and the number of words.
        names: of the tags.
    """

    tags: NDArray[np.int64]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    names: tuple[str, ...]

    def predicted(self, outputs: object) -> NDArray[np.int64]:
        """Return the predicted tag of each word, sentence after sentence.

        Raises:
            DataError: another number of outputs than of words, or NaN.
        """
        classes = predicted_classes(cast(Logits, outputs))
        if len(classes) != len(self.order):
            raise DataError(
                f"got {len(classes)} predictions for {len(self.order)} words; use the same rows "
                f"for both"
            )
        return classes[self.order]


class TokenClassification(ByUnits):
    """One tag for each word; a `hfcompress.tasks.task.Task`.

    A word is answered for by its first token. Texts longer than the model are read in windows that
    overlap; a word is answered for by the window in which it has most context on both sides.
    """

    name = "token-classification"
    modality: Modality = "text"

    def metrics(self, kind: OutputKind = "tokens") -> tuple[str, ...]:
        """Return the metrics of entities, and the share of words with the right tag."""
        return _METRICS

    def kind(self, config: PreTrainedConfig) -> OutputKind:
        """Return that logits are of tokens."""
        return "tokens"

    def auto_class(self) -> AutoClass:
        """Return ``AutoModelForTokenClassification``."""
        from transformers import AutoModelForTokenClassification

        return cast(AutoClass, AutoModelForTokenClassification)

    def check_head(self, config: PreTrainedConfig, model: str, kind: OutputKind = "tokens") -> None:
        """Refuse a head of fewer than two tags.

        Raises:
            ModelError: such a head.
        """
        if (config.num_labels or 0) < 2:
            raise ModelError(f"the head of model {model!r} has {config.num_labels} tag; give two")

    def load(
        self,
        config: DataConfig,
        need_train: bool,
        splits: Mapping[str, Dataset] | None = None,
    ) -> Examples:
        """Read words and tags, or take those of ``splits``.

        Raises:
            SourceError, DataError: as `hfcompress.data.load.load_examples`; words and tags of
                different number.
        """
        from hfcompress.data.columns import find_column
        from hfcompress.data.load import Examples
        from hfcompress.data.read import read
        from hfcompress.data.split import choose_splits, divided
        from hfcompress.data.tags import read_tags, tag_columns, tag_names, tagged_rows

        raw, notes = read(config, self.modality) if splits is None else (dict(splits), ())
        chosen = choose_splits(raw, config, need_train)
        first = next(iter(chosen.values()))
        words, column = tag_columns(config, first)
        group = None if config.group is None else find_column(config.group, (), first, "group")
        found = {
            side: read_tags(rows, words, column, config, side) for side, rows in chosen.items()
        }
        names = tag_names([tags for _, tags in found.values()], first, column, config)
        sides, dropped = {}, dict[str, int]()
        for side, (texts, tags) in found.items():
            full = [place for place, row in enumerate(texts) if any(word.strip() for word in row)]
            if len(full) < len(texts):
                dropped[f"{side}: no words"] = len(texts) - len(full)
            rows = [[part[place] for place in full] for part in (texts, tags)]
            sides[side] = tagged_rows(cast(Any, rows[0]), cast(Any, rows[1]), names, words)
            if group is not None and group != words:
                own = chosen[side].select(full)[group][:]
                sides[side] = sides[side].add_column(group, own)
        both = divided(sides, config, need_train)
        measured = both["eval"]
        if measured is None or not len(measured):
            raise DataError(f"data: the eval side of {config.path!r} has no usable row")
        return Examples(
            train=both["train"], eval=measured, columns=(words,), modality=self.modality,
            labels=names, dropped=dropped, notes=notes, kind="tokens", config=config,
        )  # fmt: skip

    def encode(
        self, examples: Examples, rows: Dataset, processor: Processor, max_length: int | None
    ) -> Encoded:
        """Encode one side of the examples: a row for each window of a sentence."""
        from datasets import Dataset as Rows
        from transformers import PreTrainedTokenizerBase

        from hfcompress.data.encode import Encoded
        from hfcompress.data.windows import windows

        tokenizer = cast(PreTrainedTokenizerBase, processor)
        config = examples.config or DataConfig(path="data")
        limit = min(max_length or 512, tokenizer.model_max_length)
        sentences, tags = rows[examples.columns[0]][:], rows["label"][:]
        texts = [" ".join(words) for words in sentences]
        found = list(windows([texts], tokenizer, limit, config.overflow, config.stride))
        chosen = _chosen_tokens(found, sentences)
        made: dict[str, list[Any]] = {name: [] for name in found[0].inputs}
        made |= {"labels": [], _EXAMPLE: [], _WORDS: []}
        counts, lengths = [], []
        for window, tokens in zip(found, chosen, strict=True):
            known = {
                token: word
                for token, word in sorted(tokens.items())
                if tags[window.example][word] >= 0
            }
            labels = np.full(len(window.offsets), -100)
            labels[list(known)] = [tags[window.example][word] for word in known.values()]
            for name, value in window.inputs.items():
                made[name].append(value)
            made["labels"].append(labels.tolist())
            made[_EXAMPLE].append(window.example)
            made[_WORDS].append(list(known.values()))
            counts.append(len(known))
            lengths.append(len(labels))
        asked = sum(tag >= 0 for row in tags for tag in row)
        lost = asked - sum(counts)
        return Encoded(
            Rows.from_dict(made),
            np.array(lengths),
            partial(_collate, tokenizer),
            counts=np.array(counts),
            counted=_counted,
            source=rows,
            notes=(f"{lost:,} of {asked:,} words are cut off or have no token",) if lost else (),
        )

    def references(self, data: Encoded, labels: Sequence[str]) -> TaggedWords:
        """Return the tags of all words of encoded rows.

        Args:
            data: the rows.
            labels: names of the tags.
        """
        rows = data.rows.with_format(None)
        words = [np.asarray(part, np.int64) for part in rows[_WORDS][:]]
        sentences = np.repeat(np.asarray(rows[_EXAMPLE][:], np.int64), [len(w) for w in words])
        order = np.lexsort((np.concatenate([*words, np.empty(0, np.int64)]), sentences))
        tags = np.concatenate([np.asarray(part) for part in rows["labels"][:]])
        _, first = np.unique(sentences[order], return_index=True)
        starts = np.concatenate([first, [len(order)]])
        return TaggedWords(tags[tags >= 0][order], order, starts, tuple(labels))

    def units(self, metric: str, outputs: Logits, references: object) -> NDArray[np.float64]:
        """Return what a metric counts in each sentence, [sentences, counts].

        Raises:
            DataError: a metric that tags without entities do not have, or outputs that do not fit.
        """
        asked = cast(TaggedWords, references)
        return _counts(metric, asked.predicted(outputs), asked)

    def of_units(self, metric: str, units: NDArray[np.float64]) -> Value:
        """Return the metric of some sentences, from their counts."""
        return of_sums(units, _share if metric == "accuracy" else _ENTITY_METRICS[metric])

    def by_class(
        self, outputs: Logits, references: object, dense: Logits, names: Sequence[str]
    ) -> list[ClassAccuracy]:
        """Return the F1 of each type of entity, of both models; empty for tags of other things."""
        asked = cast(TaggedWords, references)
        known = tag_set(asked.names)
        if known is None:
            return []
        counts, others = (
            entity_counts(asked.predicted(given), asked.tags, asked.starts, known).sum(0)
            for given in (outputs, dense)
        )
        scores = zip(known.type_names, counts[:, 2], f1_of_types(counts), f1_of_types(others),
                     strict=True)  # fmt: skip
        return [
            {"name": name, "n": int(n), "value": float(own), "dense": float(theirs), "metric": "f1"}
            for name, n, own, theirs in scores
            if n
        ]

    def agreement(self, outputs: Logits, dense: Logits, references: object) -> float:
        """Return the share of words that both give the same tag."""
        asked = cast(TaggedWords, references)
        return agreement(asked.predicted(outputs), asked.predicted(dense))


def _share(right_and_all: NDArray[np.float64]) -> float:
    return float(right_and_all[0] / right_and_all[1]) if right_and_all[1] else 0.0


def _counts(name: str, predicted: NDArray[np.int64], asked: TaggedWords) -> NDArray[np.float64]:
    """Return what a metric counts in each sentence."""
    if name == "accuracy":
        ends = asked.starts
        right = np.concatenate([[0], np.cumsum(predicted == asked.tags)])[ends]
        return np.stack([np.diff(right), np.diff(ends)], axis=1).astype(np.float64)
    if name not in _ENTITY_METRICS:
        raise DataError(
            f"{name!r} is not a metric of token-classification{nearest(name, list(_METRICS))}"
        )
    found = _entities(asked.names)
    counts = entity_counts(predicted, asked.tags, asked.starts, found)
    return counts.reshape(len(counts), -1).astype(np.float64)


def _entities(names: Sequence[str]) -> TagSet:
    found = tag_set(names)
    if found is None:
        raise DataError(
            f"the tags {', '.join(names[:5])} are not of entities: none begins with B- or I-, and "
            f"there is no O; write measure.metric: accuracy"
        )
    return found


def _chosen_tokens(
    found: Sequence[Window], sentences: Sequence[Sequence[str]]
) -> list[dict[int, int]]:
    """Return, for each window, the tokens that answer for a word: token -> word."""
    best: dict[tuple[int, int], tuple[int, int, int, int]] = {}
    ends = {}
    for place, window in enumerate(found):
        if window.example not in ends:
            lengths = np.array([len(word) + 1 for word in sentences[window.example]])
            ends[window.example] = np.cumsum(lengths) - 1
        inside = np.flatnonzero((window.sequences == 0) & (np.diff(window.offsets)[:, 0] > 0))
        words = np.searchsorted(ends[window.example], window.offsets[inside, 1])
        for token, word in zip(inside.tolist(), words.tolist(), strict=True):
            begin = int(window.offsets[token, 0])
            context = int(min(token - inside[0], inside[-1] - token))
            key, known = (window.example, word), best.get((window.example, word))
            # The first token of a word, and of its occurrences in windows the most central one.
            if known is None or (begin, -context) < known[:2]:
                best[key] = (begin, -context, place, token)
    chosen: list[dict[int, int]] = [{} for _ in found]
    for (_, word), (_, _, place, token) in best.items():
        chosen[place][token] = word
    return chosen


def _counted(logits: Logits, batch: Batch) -> Logits:
    """Return the logits of the tokens that answer for a word."""
    found: Logits = logits[batch["labels"].numpy() != -100]
    return found


def _collate(tokenizer: Any, items: list[dict[str, Any]]) -> Batch:
    """Return one padded batch; padding has the label -100."""
    from transformers import DataCollatorForTokenClassification

    own = [
        {name: value for name, value in item.items() if name not in (_EXAMPLE, _WORDS)}
        for item in items
    ]
    return dict(DataCollatorForTokenClassification(tokenizer)(own))


TOKEN_CLASSIFICATION = TokenClassification()
