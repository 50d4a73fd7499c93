"""An answer to a question, found in a text: its first and its last token (SQuAD)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from hfcompress.config import nearest
from hfcompress.data.config import DataConfig
from hfcompress.errors import DataError, ModelError
from hfcompress.measure.answers import ANSWER_METRICS, answer_score
from hfcompress.measure.bootstrap import Value, of_mean
from hfcompress.measure.evaluation import ClassAccuracy
from hfcompress.models.loading import AutoClass, Modality, Processor
from hfcompress.tasks.outputs import Logits, OutputKind
from hfcompress.tasks.spans import best_span
from hfcompress.tasks.task import ByUnits

if TYPE_CHECKING:  # they import torch, transformers and datasets
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from hfcompress.data.encode import Batch, Encoded
    from hfcompress.data.load import Examples
    from hfcompress.data.windows import Window

LONGEST_ANSWER = 30
"""Tokens of a measured answer, as in the evaluation of transformers' SQuAD example."""
_POSITIONS = ("start_positions", "end_positions")
# Columns of encoded rows that are not a model's inputs: of which example a window is, its token
# that stands for "no answer", its first token of the context, and that tokens' characters.
_EXAMPLE, _NONE, _FIRST, _BEGINS, _ENDS = "example", "none", "first", "begins", "ends"
_OURS = (_EXAMPLE, _NONE, _FIRST, _BEGINS, _ENDS)


@dataclass(frozen=True)
class WindowPlace:
    """Where a window's tokens are.

    Attributes:
        none: place of the token of "no answer" in the table of outputs.
        context: place of the context's first token there.
        begins, ends: first character, and the one behind the last, of the context's tokens.
    """

    none: int
    context: int
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]


@dataclass(frozen=True)
class AskedQuestions:
    """The questions that are measured.

    Attributes:
        contexts: of each question.
        answers: the right ones of each question; empty where there is none.
        windows: of each question.
        outputs: number of rows in the table of outputs.
        may_be_none: some questions have no answer, so that any may be answered with "".
    """

    contexts: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    windows: tuple[tuple[WindowPlace, ...], ...]
    outputs: int
    may_be_none: bool

    def predicted(self, outputs: object) -> list[str]:
        """Return the answer to each question: the span with the highest sum of logits over all
        windows, or "" where "no answer" has more in every window.

        Args:
            outputs: logits of first and last token, [tokens of all windows, 2].

        Raises:
            DataError: another number of outputs than of tokens, or NaN.
        """
        logits = np.asarray(outputs, np.float32)
        if logits.shape != (self.outputs, 2):
            raise DataError(
                f"got outputs of shape {logits.shape} for {self.outputs} tokens, of which each "
                f"has two; use the same rows for both"
            )
        if not np.isfinite(logits).all():
            raise DataError("some outputs are not finite; check the model's weights and dtype")
        pairs = zip(self.contexts, self.windows, strict=True)
        return [self._answer(context, places, logits) for context, places in pairs]

    def _answer(self, context: str, places: Sequence[WindowPlace], logits: Logits) -> str:
        best, answer = -np.inf, ""
        for place in places:
            if not len(place.begins):
                continue
            own = logits[place.context : place.context + len(place.begins)]
            score, first, last = best_span(own[:, 0], own[:, 1], LONGEST_ANSWER)
            if score > best:
                best, answer = score, context[place.begins[first] : place.ends[last]]
        if self.may_be_none and min(float(logits[place.none].sum()) for place in places) > best:
            return ""
        return answer

    def scores(self, metric: str, answers: Sequence[str]) -> NDArray[np.float64]:
        """Return a metric of each question.

        Raises:
            DataError: an unknown metric.
        """
        if metric not in ANSWER_METRICS:
            raise DataError(
                f"{metric!r} is not a metric of question-answering"
                f"{nearest(metric, list(ANSWER_METRICS))}"
            )
        pairs = zip(answers, self.answers, strict=True)
        return np.array([answer_score(metric, answer, right) for answer, right in pairs])


class QuestionAnswering(ByUnits):
    """The part of a context that answers a question; a `hfcompress.tasks.task.Task`.

    A context longer than the model is read in windows that overlap. A window without the answer is
    trained to answer with its first token, which stands for "no answer".
    """

    name = "question-answering"
    modality: Modality = "text"

    def metrics(self, kind: OutputKind = "spans") -> tuple[str, ...]:
        """Return SQuAD's metrics: F1 of words, and exact match."""
        return tuple(ANSWER_METRICS)

    def kind(self, config: PreTrainedConfig) -> OutputKind:
        """Return that logits are of first and last tokens."""
        return "spans"

    def auto_class(self) -> AutoClass:
        """Return ``AutoModelForQuestionAnswering``."""
        from transformers import AutoModelForQuestionAnswering

        return cast(AutoClass, AutoModelForQuestionAnswering)

    def check_head(self, config: PreTrainedConfig, model: str, kind: OutputKind = "spans") -> None:
        """Refuse a head of other than two outputs for a token.

        Raises:
            ModelError: such a head.
        """
        if config.num_labels != 2:
            raise ModelError(
                f"the head of model {model!r} has {config.num_labels} outputs for a token; "
                f"question-answering needs two: first and last token"
            )

    def load(
        self,
        config: DataConfig,
        need_train: bool,
        splits: Mapping[str, Dataset] | None = None,
    ) -> Examples:
        """Read questions, contexts and answers, or take those of ``splits``.

        Of a lone split all questions on one context are on one side.

        Raises:
            SourceError, DataError: as `hfcompress.data.load.load_examples`; an answer that is not
                in its context where it should be.
        """
        from hfcompress.data.columns import find_column
        from hfcompress.data.load import Examples
        from hfcompress.data.questions import asked_rows, question_columns
        from hfcompress.data.read import read
        from hfcompress.data.split import choose_splits, divided

        raw, notes = read(config, self.modality) if splits is None else (dict(splits), ())
        chosen = choose_splits(raw, config, need_train)
        first = next(iter(chosen.values()))
        columns = question_columns(config, first)
        kept = [] if config.group is None else [find_column(config.group, (), first, "group")]
        dropped: dict[str, int] = {}
        sides = {
            side: asked_rows(rows, columns, kept, side, dropped) for side, rows in chosen.items()
        }
        lone = sides["eval"][columns[1]][:]
        if config.group is None and len(set(lone)) > 1:
            config = config.replace(group=columns[1])
        both = divided(sides, config, need_train)
        measured = both["eval"]
        if measured is None or not len(measured):
            raise DataError(f"data: the eval side of {config.path!r} has no usable row")
        return Examples(
            train=both["train"], eval=measured, columns=columns[:2], modality=self.modality,
            labels=[], dropped=dropped, notes=(*notes, *_without_answer(measured)), kind="spans",
            config=config,
        )  # fmt: skip

    def encode(
        self, examples: Examples, rows: Dataset, processor: Processor, max_length: int | None
    ) -> Encoded:
        """Encode one side of the examples: a row for each window of a context."""
        from datasets import Dataset as Rows

        from hfcompress.data.encode import Encoded
        from hfcompress.data.windows import windows

        tokenizer = cast("PreTrainedTokenizerBase", processor)
        config = examples.config or DataConfig(path="data")
        limit = min(max_length or 512, tokenizer.model_max_length)
        texts = [rows[column][:] for column in examples.columns]
        answers = rows["label"][:]
        found = list(windows(texts, tokenizer, limit, config.overflow, config.stride))
        made: dict[str, list[Any]] = {name: [] for name in (*found[0].inputs, *_POSITIONS, *_OURS)}
        answered = set()
        for window in found:
            row = _encoded(window, answers[window.example], tokenizer.cls_token_id)
            if row[_POSITIONS[0]] != row[_NONE]:
                answered.add(window.example)
            for name, value in row.items():
                made[name].append(value)
        lengths = np.array([len(window.offsets) for window in found])
        asked = sum(bool(answer["text"]) for answer in answers)
        lost = asked - len(answered)
        return Encoded(
            Rows.from_dict(made),
            lengths,
            partial(_collate, tokenizer),
            counts=lengths,
            counted=_counted,
            source=rows.select_columns([examples.columns[1], "label"]),
            notes=(f"{lost:,} of {asked:,} answers are in no window whole",) if lost else (),
        )

    def references(self, data: Encoded, labels: Sequence[str]) -> AskedQuestions:
        """Return the questions of encoded rows, in the order of their numbers."""
        assert data.source is not None
        rows = data.rows.with_format(None)
        found: dict[int, list[WindowPlace]] = {}
        parts = zip(*(rows[name][:] for name in _OURS), strict=True)
        for start, (example, none, first, begins, ends) in zip(
            data.starts[:-1], parts, strict=True
        ):
            offsets = np.asarray(begins, np.int64), np.asarray(ends, np.int64)
            place = WindowPlace(int(start) + none, int(start) + first, *offsets)
            found.setdefault(example, []).append(place)
        order = sorted(found)
        context, label = data.source.column_names
        contexts, answers = data.source[context][:], data.source[label][:]
        return AskedQuestions(
            tuple(contexts[example] for example in order),
            tuple(tuple(answers[example]["text"]) for example in order),
            tuple(tuple(found[example]) for example in order),
            int(data.starts[-1]),
            not all(answer["text"] for answer in answers),
        )

    def units(self, metric: str, outputs: Logits, references: object) -> NDArray[np.float64]:
        """Return the metric of each question, [questions, 1].

        Raises:
            DataError: another metric, or outputs that do not fit.
        """
        asked = cast(AskedQuestions, references)
        return asked.scores(metric, asked.predicted(outputs))[:, None]

    def of_units(self, metric: str, units: NDArray[np.float64]) -> Value:
        """Return the mean over some questions."""
        return of_mean(units[:, 0])

    def by_class(
        self, outputs: Logits, references: object, dense: Logits, names: Sequence[str]
    ) -> list[ClassAccuracy]:
        """Return the F1 of questions with and without an answer, of both models; empty where all
        have one."""
        asked = cast(AskedQuestions, references)
        if not asked.may_be_none:
            return []
        own, other = (asked.scores("f1", asked.predicted(given)) for given in (outputs, dense))
        answerable = np.array([bool(right) for right in asked.answers])
        sides = (("with an answer", answerable), ("without an answer", ~answerable))
        return [
            {"name": name, "n": int(side.sum()), "value": float(own[side].mean()),
             "dense": float(other[side].mean()), "metric": "f1"}
            for name, side in sides
            if side.any()
        ]  # fmt: skip

    def agreement(self, outputs: Logits, dense: Logits, references: object) -> float:
        """Return the share of questions to which both give the same answer."""
        asked = cast(AskedQuestions, references)
        return float(
            np.mean(np.array(asked.predicted(outputs)) == np.array(asked.predicted(dense)))
        )


def _without_answer(rows: Dataset) -> tuple[str, ...]:
    """One sentence where some measured questions have no answer."""
    count = sum(not answer["text"] for answer in rows["label"][:])
    if not count:
        return ()
    return (
        f"{count:,} of {len(rows):,} measured questions have no answer in their context, so any "
        f"may be answered with none (SQuAD 2.0)",
    )


def _encoded(
    window: Window, answers: Mapping[str, Any], cls_token_id: int | None
) -> dict[str, Any]:
    """Return a window as a row: the model's inputs, the first answer's tokens, and where its
    tokens are in the context."""
    ids = window.inputs["input_ids"]
    none = ids.index(cls_token_id) if cls_token_id in ids else 0
    context = np.flatnonzero(window.sequences == 1)
    first = int(context[0]) if len(context) else 0
    begins, ends = window.offsets[context].T if len(context) else np.empty((2, 0), np.int64)
    positions = (none, none)
    if answers["text"] and len(context):
        start = answers["answer_start"][0]
        end = start + len(answers["text"][0])
        if begins[0] <= start and end <= ends[-1]:
            tokens = (np.searchsorted(begins, start, "right") - 1, np.searchsorted(ends, end))
            positions = (first + int(tokens[0]), first + int(tokens[1]))
    return {
        **window.inputs,
        **dict(zip(_POSITIONS, positions, strict=True)),
        _EXAMPLE: window.example,
        _NONE: none,
        _FIRST: first,
        _BEGINS: begins.tolist(),
        _ENDS: ends.tolist(),
    }


def _counted(logits: Logits, batch: Batch) -> Logits:
    """Return the logits of all tokens that are not padding, [tokens, 2]."""
    found: Logits = logits.transpose(0, 2, 1)[batch["attention_mask"].numpy() != 0]
    return found


def _collate(tokenizer: Any, items: list[dict[str, Any]]) -> Batch:
    """Return one padded batch."""
    own = [{name: value for name, value in item.items() if name not in _OURS} for item in items]
    batch = dict(tokenizer.pad(own, return_tensors="pt"))
    if tokenizer.padding_side == "left":
        added = batch["input_ids"].shape[1] - batch["attention_mask"].sum(1)
        for name in _POSITIONS:
            batch[name] = batch[name] + added
    return batch


QUESTION_ANSWERING = QuestionAnswering()
