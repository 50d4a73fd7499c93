"""A tokenizer with fewer tokens, for a corpus."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pydantic import Field
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from hfcompress.config import StepConfig
from hfcompress.data.config import DataConfig
from hfcompress.errors import CalibrationError, ModelError
from hfcompress.shrinking.vocabulary.tokenizer_json import (
    Json,
    tokens_of,
    tokens_to_keep,
    with_tokens,
)
from hfcompress.storage.temporary import temporary_root

_BATCH = 1000


@dataclass(frozen=True)
class CutTokenizer:
    """A tokenizer that lost tokens.

    Attributes:
        tokenizer: of the same class as before, with the same options.
        kept: old number of each of its tokens, by new number.
        before: how many tokens there were.
    """

    tokenizer: PreTrainedTokenizerBase
    kept: tuple[int, ...]
    before: int


def cut_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    config: VocabularyConfig | None = None,
    required: Iterable[int] = (),
) -> CutTokenizer:
    """Keep the tokens that texts use; they are split as before, any other text still can be.

    Args:
        tokenizer: a fast tokenizer; left as it is.
        texts: the corpus.
        config: which tokens stay.
        required: numbers of tokens that stay whatever the texts say.

    Raises:
        CalibrationError: no text, or none that shares a token with the tokenizer.
        ModelError: a tokenizer that is not fast, or neither WordPiece nor BPE.
        SourceError, DataError: `load_texts` of ``config.unlabelled``.
    """
    config = config or VocabularyConfig()
    data = _as_json(tokenizer)
    tokens = tokens_of(data)
    texts = list(texts)
    if config.unlabelled is not None:
        from hfcompress.data.load import load_texts  # datasets takes long to import

        texts += load_texts(config.unlabelled)
    counts = Counter(number for row in _encoded(data, texts) for number in row)
    special = {token["id"] for token in data["added_tokens"]}
    special |= {tokens.get(str(data["model"].get("unk_token")), -1)}
    if not counts.keys() - special:
        raise CalibrationError(
            f"the {len(texts):,} texts share no token with the tokenizer "
            f"({len(tokens):,} tokens); give texts that the model was made for"
        )
    used = [number for number, count in counts.items() if count >= config.min_count]
    kept = tokens_to_keep(data, used, required)
    smaller = with_tokens(data, kept)
    numbers = tuple(tokens[token] for token in kept)
    if config.min_count == 1:
        _check_alike(data, smaller, numbers, texts)
    return CutTokenizer(_rebuilt(tokenizer, smaller), numbers, len(tokens))


def count_kept(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    min_counts: Sequence[int],
    required: Iterable[int] = (),
) -> dict[int, int]:
    """Count the tokens that `cut_tokenizer` would keep, for several ``min_count`` at once.

    Raises:
        ModelError: a tokenizer that is not fast, or neither WordPiece nor BPE.
    """
    data = _as_json(tokenizer)
    counts = Counter(number for row in _encoded(data, list(texts)) for number in row)
    required = tuple(required)
    kept = {}
    for least in min_counts:
        used = [number for number, count in counts.items() if count >= least]
        kept[least] = len(tokens_to_keep(data, used, required))
    return kept


def _as_json(tokenizer: PreTrainedTokenizerBase) -> Json:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ModelError(
            f"{type(tokenizer).__name__} keeps no tokenizer.json; load the model's fast tokenizer "
            f"with AutoTokenizer"
        )
    data: Json = json.loads(backend.to_str())
    return data


def _encoded(data: Json, texts: Sequence[str]) -> Iterator[list[int]]:
    """Numbers of each text's tokens, uncut and without special tokens around them."""
    backend = Tokenizer.from_str(json.dumps(data))
    backend.no_truncation()
    backend.no_padding()
    rows = iter(texts)
    while batch := list(islice(rows, _BATCH)):
        for encoded in backend.encode_batch(batch, add_special_tokens=False):
            yield encoded.ids


def _check_alike(before: Json, after: Json, kept: Sequence[int], texts: Sequence[str]) -> None:
    """The corpus must be split as before: a tokenizer with rules of its own would show here."""
    old_and_new = zip(_encoded(before, texts), _encoded(after, texts), strict=True)
    for text, (old, new) in zip(texts, old_and_new, strict=True):
        if old != [kept[number] for number in new]:
            raise ModelError(
                f"with fewer tokens the tokenizer splits {text[:40]!r} otherwise than before; "
                f"its vocabulary cannot be cut"
            )


def _rebuilt(tokenizer: PreTrainedTokenizerBase, data: Json) -> PreTrainedTokenizerBase:
    """The same class with the same options around a changed ``tokenizer.json``."""
    with tempfile.TemporaryDirectory(dir=temporary_root()) as folder:
        tokenizer.save_pretrained(folder)
        for name in tokenizer.vocab_files_names.values():  # files that say the vocabulary twice
            (Path(folder) / name).unlink(missing_ok=True)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
        _renumber_options(Path(folder) / "tokenizer_config.json", tokens_of(data))
        rebuilt: PreTrainedTokenizerBase = type(tokenizer).from_pretrained(folder)
    rebuilt.name_or_path = tokenizer.name_or_path
    return rebuilt


def _renumber_options(path: Path, numbers: dict[str, int]) -> None:
    """Older files list added tokens by number beside the tokenizer's options."""
    options = json.loads(path.read_text(encoding="utf-8"))
    added = options.get("added_tokens_decoder")
    if added:
        options["added_tokens_decoder"] = {
            str(numbers[token["content"]]): token for token in added.values()
        }
        path.write_text(json.dumps(options), encoding="utf-8")


class VocabularyConfig(StepConfig):
    """The tokens to keep: those that the texts use, single characters and special tokens."""

    step_name = "vocabulary"
    compresses = True

    min_count: int = Field(
        1,
        ge=1,
        description="how often the texts must use a token; words of rarer ones are split further",
    )
    unlabelled: DataConfig | None = Field(
        None,
        description="further texts whose tokens stay; in a recipe, those of the measured rows are "
        "left out",
    )

    @property
    def needs_rows(self) -> bool:
        """Whether the step reads training rows: always, they are the corpus."""
        return True
