"""The token behind a mask: masked language models, the backbones before any task."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from hfcompress.config import nearest
from hfcompress.data.config import DataConfig
from hfcompress.errors import DataError, ModelError
from hfcompress.measure.bootstrap import Value, of_sums
from hfcompress.models.loading import AutoClass, Modality, Processor
from hfcompress.tasks.outputs import Logits, OutputKind
from hfcompress.tasks.task import ByUnits

if TYPE_CHECKING:  # they import torch, transformers and datasets
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from hfcompress.data.encode import Batch, Encoded
    from hfcompress.data.load import Examples
    from hfcompress.data.windows import Window

MOST_MASKED = 20_000
"""Tokens that are measured at most, each in a row of its own; of more a sample is drawn."""
SHARE = 0.15
"""Share of the tokens that training predicts (BERT, 1810.04805)."""
_METRICS = ("pseudo_perplexity", "accuracy")
_EXAMPLE = "example"
_NAMES = 1 << 24
"""Below it whole numbers are exact in float32."""


@dataclass(frozen=True)
class MaskedTexts:
    """The masked tokens that are measured.

    Attributes:
        starts: place of each text's first token in the table of outputs, and the number of tokens.
    """

    starts: NDArray[np.int64]

    def check(self, outputs: object) -> Logits:
        """Return the outputs, [tokens, 3].

        Raises:
            DataError: another number of outputs than of tokens, or NaN.
        """
        found = np.asarray(outputs, np.float32)
        if found.shape != (self.starts[-1], 3):
            raise DataError(
                f"got outputs of shape {found.shape} for {self.starts[-1]} masked tokens; compare "
                f"models that divide the texts into the same tokens"
            )
        if not np.isfinite(found).all():
            raise DataError("some outputs are not finite; check the model's weights and dtype")
        return found


class FillMask(ByUnits):
    """The token behind a mask; a `hfcompress.tasks.task.Task`.

    An output is of a masked token: the log-probability of the true one, whether it is the
    likeliest, and a number of the likeliest one's text. The logits of a whole vocabulary would not
    fit into memory.
    """

    name = "fill-mask"
    modality: Modality = "text"

    def metrics(self, kind: OutputKind = "masked") -> tuple[str, ...]:
        """Return the pseudo-perplexity, and the share of tokens that are found."""
        return _METRICS

    def kind(self, config: PreTrainedConfig) -> OutputKind:
        """Return that logits are of a token behind a mask."""
        return "masked"

    def auto_class(self) -> AutoClass:
        """Return ``AutoModelForMaskedLM``."""
        from transformers import AutoModelForMaskedLM

        return cast(AutoClass, AutoModelForMaskedLM)

    def check_head(self, config: PreTrainedConfig, model: str, kind: OutputKind = "masked") -> None:
        """Refuse an encoder-decoder, which writes what is behind a mask with its decoder.

        Raises:
            ModelError: such a model.
        """
        if config.is_encoder_decoder:
            raise ModelError(
                f"model {model!r} is an encoder-decoder; fill-mask takes encoders, such as BERT"
            )

    def load(
        self,
        config: DataConfig,
        need_train: bool,
        splits: Mapping[str, Dataset] | None = None,
    ) -> Examples:
        """Read texts, or take those of ``splits``; labels are not read.

        Raises:
            SourceError, DataError: as `hfcompress.data.load.load_examples`; two columns of text.
        """
        from hfcompress.data.columns import (
            count_dropped,
            find_column,
            input_columns,
            with_texts,
        )
        from hfcompress.data.load import Examples
        from hfcompress.data.read import read
        from hfcompress.data.split import choose_splits, divided

        raw, notes = read(config, self.modality) if splits is None else (dict(splits), ())
        chosen = choose_splits(raw, config, need_train)
        first = next(iter(chosen.values()))
        columns = input_columns(config, self.modality, first)
        if len(columns) != 1:
            raise DataError(
                f"fill-mask reads one column of text and finds {' and '.join(columns)}; write "
                f"data.text: {columns[0]}"
            )
        kept = [] if config.group is None else [find_column(config.group, (), first, "group")]
        sides, dropped = {}, dict[str, int]()
        for side, rows in chosen.items():
            own = with_texts(rows.select_columns(list({*columns, *kept})), columns)
            texts = own[columns[0]][:]
            full = [place for place, text in enumerate(texts) if text and text.strip()]
            count_dropped(dropped, f"{side}: empty {columns[0]}", len(texts) - len(full))
            sides[side] = own.select(full)
        both = divided(sides, config, need_train)
        measured = both["eval"]
        if measured is None or not len(measured):
            raise DataError(f"data: the eval side of {config.path!r} has no usable row")
        return Examples(
            train=both["train"], eval=measured, columns=columns, modality=self.modality, labels=[],
            dropped=dropped, notes=notes, kind="masked", config=config,
        )  # fmt: skip

    def encode(
        self, examples: Examples, rows: Dataset, processor: Processor, max_length: int | None
    ) -> Encoded:
        """Encode one side of the examples.

        Training rows are windows of the texts with 15 % of their tokens to predict, as BERT's own
        script draws them, the same ones in each epoch. Measured rows have one masked token each
        (Salazar et al. 2020, 1910.14659).

        Raises:
            ModelError: a tokenizer without a mask token.
            DataError: no token to mask.
        """
        from datasets import Dataset as Rows

        from hfcompress.data.encode import Encoded
        from hfcompress.data.windows import windows

        tokenizer = cast("PreTrainedTokenizerBase", processor)
        if tokenizer.mask_token_id is None:
            raise ModelError(
                f"the model's {type(tokenizer).__name__} has no mask token; give a model with one, "
                f"or write its task"
            )
        config = examples.config or DataConfig(path="data")
        limit = min(max_length or 512, tokenizer.model_max_length)
        texts = rows[examples.columns[0]][:]
        found = list(windows([texts], tokenizer, limit, config.overflow, config.stride))
        tokens = _own_tokens(found, tokenizer.mask_token_id)
        count = sum(map(len, tokens))
        if not count:
            raise DataError(f"the texts in {examples.columns[0]!r} have no token to mask")
        trains = rows is examples.train and rows is not examples.eval
        make = _training_rows if trains else _measured_rows
        made = make(found, tokens, tokenizer, np.random.default_rng(config.seed))
        names = [*found[0].inputs, "labels", _EXAMPLE]
        table = {name: [row[name] for row in made] for name in names}
        counts = np.array([sum(label != -100 for label in row) for row in table["labels"]])
        notes = _training_notes if trains else _measured_notes
        return Encoded(
            Rows.from_dict(table),
            np.array([len(ids) for ids in table["input_ids"]]),
            partial(_collate, tokenizer),
            counts=counts,
            counted=partial(_counted, tokenizer),
            source=rows,
            notes=notes(int(counts.sum()), count, len(set(table[_EXAMPLE]))),
        )

    def references(self, data: Encoded, labels: Sequence[str]) -> MaskedTexts:
        """Return which masked tokens are of one text."""
        assert data.counts is not None
        texts = np.repeat(np.asarray(data.rows.with_format(None)[_EXAMPLE][:]), data.counts)
        _, first = np.unique(texts, return_index=True)
        return MaskedTexts(np.append(first, len(texts)))

    def units(self, metric: str, outputs: Logits, references: object) -> NDArray[np.float64]:
        """Return the sum of log-probabilities, or of tokens that are found, and the number of
        masked tokens, of each text, [texts, 2].

        Raises:
            DataError: another metric, or outputs that do not fit.
        """
        if metric not in _METRICS:
            raise DataError(
                f"{metric!r} is not a metric of fill-mask{nearest(metric, list(_METRICS))}"
            )
        asked = cast(MaskedTexts, references)
        column = asked.check(outputs)[:, _METRICS.index(metric)].astype(np.float64)
        counts = np.diff(asked.starts).astype(np.float64)
        return np.stack([np.add.reduceat(column, asked.starts[:-1]), counts], axis=1)

    def of_units(self, metric: str, units: NDArray[np.float64]) -> Value:
        """Return the metric of some texts, from their sums."""
        if metric == "accuracy":
            return of_sums(units, lambda both: float(both[0] / both[1]))
        return of_sums(units, lambda both: float(np.exp(-both[0] / both[1])))

    def same_units(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> bool:
        """Return whether both divide the texts into as many tokens."""
        return super().same_units(first, second) and bool((first[:, 1] == second[:, 1]).all())

    def agreement(self, outputs: Logits, dense: Logits, references: object) -> float:
        """Return the share of masked tokens for which both take the same one for the likeliest."""
        return float((outputs[:, 2] == dense[:, 2]).mean())


def _own_tokens(found: Sequence[Window], mask: int) -> list[NDArray[np.int64]]:
    """Return the tokens of each window that may be masked, each token of a text in one window: that
    in which it has most context. Special tokens and masks that the text has stay as they are."""
    best: dict[tuple[int, int, int, int], tuple[int, int, int]] = {}
    for place, window in enumerate(found):
        inside = np.flatnonzero(window.sequences == 0)
        seen: dict[tuple[int, int], int] = {}
        for token in inside.tolist():
            begin, end = window.offsets[token].tolist()
            # Several tokens may be of one character, which has several bytes.
            number = seen[begin, end] = seen.get((begin, end), -1) + 1
            context = int(min(token - inside[0], inside[-1] - token))
            key = (window.example, begin, end, number)
            if window.inputs["input_ids"][token] != mask and context > best.get(key, (-1,))[0]:
                best[key] = (context, place, token)
    chosen: list[list[int]] = [[] for _ in found]
    for _, place, token in best.values():
        chosen[place].append(token)
    return [np.array(sorted(tokens), np.int64) for tokens in chosen]


def _measured_rows(
    found: Sequence[Window],
    tokens: Sequence[NDArray[np.int64]],
    tokenizer: Any,
    generator: np.random.Generator,
) -> list[dict[str, Any]]:
    """Return a row for each token, in which it is masked; of more than `MOST_MASKED` a sample."""
    pairs = [(place, int(token)) for place, own in enumerate(tokens) for token in own]
    if len(pairs) > MOST_MASKED:
        drawn = np.sort(generator.choice(len(pairs), MOST_MASKED, replace=False))
        pairs = [pairs[number] for number in drawn]
    rows = []
    for place, token in pairs:
        window = found[place]
        ids = list(window.inputs["input_ids"])
        labels = [-100] * len(ids)
        labels[token], ids[token] = ids[token], tokenizer.mask_token_id
        rows.append({**window.inputs, "input_ids": ids, "labels": labels, _EXAMPLE: window.example})
    return rows


def _training_rows(
    found: Sequence[Window],
    tokens: Sequence[NDArray[np.int64]],
    tokenizer: Any,
    generator: np.random.Generator,
) -> list[dict[str, Any]]:
    """Return a row for each window: of the tokens to predict 80 % are masked, 10 % are others at
    random, 10 % stay."""
    rows = []
    for window, own in zip(found, tokens, strict=True):
        if not len(own):
            continue
        chosen = np.sort(generator.choice(own, max(1, round(SHARE * len(own))), replace=False))
        ids = np.array(window.inputs["input_ids"])
        labels = np.full(len(ids), -100)
        labels[chosen] = ids[chosen]
        kind = generator.random(len(chosen))
        ids[chosen[kind < 0.8]] = tokenizer.mask_token_id
        others = chosen[kind >= 0.9]
        ids[others] = generator.integers(0, len(tokenizer), len(others))
        rows.append(
            {**window.inputs, "input_ids": ids.tolist(), "labels": labels.tolist(),
             _EXAMPLE: window.example}
        )  # fmt: skip
    return rows


def _measured_notes(masked: int, tokens: int, texts: int) -> tuple[str, ...]:
    what = "each" if masked == tokens else f"a sample of {masked:,}"
    return (f"measured by masking {what} of the {tokens:,} tokens of {texts:,} texts in turn",)


def _training_notes(masked: int, tokens: int, texts: int) -> tuple[str, ...]:
    return (f"trained to predict {masked:,} of the {tokens:,} tokens of {texts:,} texts",)


def _counted(tokenizer: Any, logits: Logits, batch: Batch) -> Logits:
    """Return, for each masked token, the log-probability of the true one, whether that is the
    likeliest, and a number of the likeliest one's text, [tokens, 3].

    Raises:
        ModelError: a token that the model has no score for.
    """
    labels = batch["labels"].numpy()
    chosen = labels != -100
    own, truth = logits[chosen].astype(np.float64), labels[chosen]
    if truth.max(initial=0) >= own.shape[1]:
        raise ModelError(
            f"the tokenizer has the token {truth.max()} and the model scores {own.shape[1]}; give "
            f"the tokenizer that the model was trained with"
        )
    top = own.max(1)
    likely = own[np.arange(len(own)), truth] - top - np.log(np.exp(own - top[:, None]).sum(1))
    best = own.argmax(1)
    texts = tokenizer.convert_ids_to_tokens(best.tolist())
    numbers = [zlib.crc32(str(text).encode()) % _NAMES for text in texts]
    return np.stack([likely, best == truth, np.array(numbers)], 1).astype(np.float32)


def _collate(tokenizer: Any, items: list[dict[str, Any]]) -> Batch:
    """Return one padded batch; padding has the label -100."""
    from transformers import DataCollatorForTokenClassification

    own = [{name: value for name, value in item.items() if name != _EXAMPLE} for item in items]
    return dict(DataCollatorForTokenClassification(tokenizer)(own))


FILL_MASK = FillMask()
