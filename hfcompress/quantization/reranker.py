"""``Reranker``: queries and passages in, scores out, whichever the engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from hfcompress.errors import ConfigError, DataError
from hfcompress.models.cross_encoder import score_activation
from hfcompress.quantization.backends import import_backend
from hfcompress.quantization.engine import Engine
from hfcompress.quantization.manifest import Manifest
from hfcompress.quantization.predictor import Predictor
from hfcompress.quantization.preparation import Preparation, TextPreparation, chunks
from hfcompress.tasks.outputs import label_scores

if TYPE_CHECKING:  # it imports transformers
    from hfcompress.quantization.backends.torch import TorchEngine


class RankedPassage(TypedDict):
    """A passage's place in the given list, and its score, under CrossEncoder's names."""

    corpus_id: int
    score: float


class Reranker(Predictor):
    """Scores pairs as ``sentence_transformers.CrossEncoder`` does.

    Args:
        engine, prepare, manifest, shape: as in `Predictor`.
        config: ``config.json``, which names what makes a score of the logit.
        where: the folder, for messages.

    Raises:
        ModelError: another function than a sigmoid or none.
    """

    def __init__(
        self,
        engine: Engine,
        prepare: Preparation | None,
        manifest: Manifest,
        config: Mapping[str, object],
        where: str,
        shape: tuple[int, int] | None = None,
    ) -> None:
        names = cast(Mapping[str, str], config.get("id2label") or {})
        label = next(iter(names.values()), "score")
        super().__init__(engine, (label,), prepare, manifest, shape, "ranking")
        self.activation = score_activation(config, where)

    def predict(self, pairs: object, batch_size: int = 32) -> NDArray[np.float32]:
        """Return the score of each pair of a query and a passage.

        Args:
            pairs: a pair, or a list (or another container) of pairs; a pair is a tuple or a list
                of two texts.
            batch_size: pairs computed together; they are sorted by length first.

        Returns:
            [pairs]; of one pair a number, [].

        Raises:
            ConfigError: a batch size below 1.
            DataError: no pairs, something that is not a pair, or a folder without tokenizer.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size!r}; give a number from 1")
        if self._prepare is None:
            raise DataError(
                "the folder has no tokenizer; save the model with one, or call logits with "
                "input_ids and attention_mask"
            )
        given, single = _pairs(pairs)
        rows, _ = self._prepare.rows(given)
        asked = list(rows)
        order = sorted(range(len(given)), key=lambda place: -sum(map(len, given[place])))
        scores = np.empty(len(given), np.float32)
        for part in chunks(order, batch_size):
            places = cast(list[int], part)
            logits = self.logits(self._prepare([asked[place] for place in places]))[:, 0]
            scores[places] = label_scores(logits, "ranking") if self._is_sigmoid else logits
        return scores[0] if single else scores

    def rank(
        self, query: str, passages: Iterable[str], top_k: int | None = None, batch_size: int = 32
    ) -> list[RankedPassage]:
        """Return passages by their score, the highest first, as ``CrossEncoder.rank`` does.

        Args:
            query: a text.
            passages: texts.
            top_k: how many; None takes all.
            batch_size: pairs computed together.

        Raises:
            ConfigError, DataError: as `predict`.
        """
        scores = self.predict([(query, passage) for passage in passages], batch_size)
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [RankedPassage(corpus_id=int(n), score=float(scores[n])) for n in order]

    @property
    def _is_sigmoid(self) -> bool:
        return self.activation == "sigmoid"


def _pairs(given: object) -> tuple[list[tuple[str, str]], bool]:
    """Return pairs as tuples, and whether one alone was given."""
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise DataError(f"a {type(given).__name__} is not a pair; give a tuple (query, passage)")
    members = list(given)
    if len(members) == 2 and all(isinstance(one, str) for one in members):
        return [(members[0], members[1])], True
    if not members:
        raise DataError("nothing to score; give at least one pair")
    for place, member in enumerate(members):
        if isinstance(member, str) or not isinstance(member, Iterable) or len(list(member)) != 2:
            raise DataError(f"example {place} is {member!r}; give a tuple (query, passage)")
    return [cast("tuple[str, str]", tuple(member)) for member in members], False


def load_checkpoint_reranker(directory: Path, shape: tuple[int, int] | None = None) -> Reranker:
    """Return the reranker of a folder with torch weights that ``save_pretrained`` or CrossEncoder
    wrote.

    Args:
        directory, shape: as `hfcompress.load`.

    Raises:
        ModelError: files that cannot be read, or what `AutoCrossEncoder` refuses.
    """
    from hfcompress.quantization.model import read_text_settings

    engine = cast("TorchEngine", import_backend("torch").load_engine(directory))
    settings = read_text_settings(directory, engine.model)
    manifest = cast(Manifest, {"inputs": list(engine.inputs), "text": settings})
    prepare = TextPreparation(directory / "tokenizer.json", settings)
    config = cast(Mapping[str, object], engine.model.config.to_dict())  # type: ignore[union-attr, operator]
    return Reranker(engine, prepare, manifest, config, str(directory), shape)
