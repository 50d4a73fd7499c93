"""A ``tokenizer.json`` with fewer tokens, WordPiece or BPE, that splits kept words as before.

WordPiece takes the longest piece that it knows: what a text used stays the longest. BPE applies
the first merge of its list that fits, again and again: a list without some merges that the text
never applied does the same. A token of BPE stays together with the tokens that its merges pass
through, and single characters (bytes, where the tokenizer works on bytes) stay always, so that
any other text can still be split.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hfcompress.errors import ModelError

Json = dict[str, Any]
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def tokens_of(data: Json) -> dict[str, int]:
    """Every token of a ``tokenizer.json`` and its number, added tokens included.

    Raises:
        ModelError: a kind of tokenizer whose vocabulary cannot be cut.
    """
    kind = data["model"].get("type") or ("BPE" if "merges" in data["model"] else "WordPiece")
    vocabulary = data["model"].get("vocab")
    if kind not in ("BPE", "WordPiece") or not isinstance(vocabulary, dict):
        raise ModelError(
            f"the tokenizer is of the kind {kind}; only the vocabularies of WordPiece and BPE "
            f"tokenizers can be cut"
        )
    return {**vocabulary, **{token["content"]: token["id"] for token in data["added_tokens"]}}


def tokens_to_keep(data: Json, used: Iterable[int], required: Iterable[int] = ()) -> list[str]:
    """The tokens that stay, in the order of their new numbers.

    Args:
        data: a ``tokenizer.json``.
        used: numbers of the tokens that texts use.
        required: numbers that stay whatever the texts say.

    Raises:
        ModelError: a kind of tokenizer whose vocabulary cannot be cut.
    """
    tokens, model = tokens_of(data), data["model"]
    names = {number: token for token, number in tokens.items()}
    kept = {names[number] for number in (*used, *required) if number in names}
    kept |= {token["content"] for token in data["added_tokens"]}
    kept |= {model["unk_token"]} & tokens.keys()
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    kept |= {token for token in model["vocab"] if _is_character(token, prefix, suffix)}
    if "merges" in model:
        ranks = {pair: rank for rank, pair in enumerate(_merges(model))}
        for token in sorted(kept & model["vocab"].keys()):
            kept |= {part for part in _parts(token, ranks, prefix, suffix) if part in tokens}
    # Numbers of the model's own tokens come first: the library counts the others on from there.
    return sorted(kept, key=lambda token: (token not in model["vocab"], tokens[token]))


def with_tokens(data: Json, kept: Iterable[str]) -> Json:
    """A ``tokenizer.json`` with some tokens only, numbered in the order given."""
    numbers = {token: number for number, token in enumerate(kept)}
    model = dict(data["model"])
    model["vocab"] = {token: number for token, number in numbers.items() if token in model["vocab"]}
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            list(pair)
            for pair in _merges(model)
            if {*pair, _joined(*pair, prefix)} <= model["vocab"].keys()
        ]
    changed = {**data, "model": model}
    changed["added_tokens"] = sorted(
        ({**token, "id": numbers[token["content"]]} for token in data["added_tokens"]),
        key=lambda token: int(token["id"]),
    )
    for part in ("post_processor", "padding"):
        changed[part] = _renumbered(data.get(part), numbers)
    return changed


def _is_character(token: str, prefix: str, suffix: str) -> bool:
    bare = token.removeprefix(prefix).removesuffix(suffix)
    return len(bare) <= 1 or _BYTE.fullmatch(token) is not None


def _merges(model: Json) -> list[tuple[str, str]]:
    """Pairs in the order of their rank; files of older releases join them by a space."""
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]


def _joined(left: str, right: str, prefix: str) -> str:
    return left + right.removeprefix(prefix)


def _parts(token: str, ranks: Mapping[tuple[str, str], int], prefix: str, suffix: str) -> set[str]:
    """The intermediate tokens of a token's merges, characters and the token included."""
    bare = token.removeprefix(prefix).removesuffix(suffix)
    symbols = [prefix + character for character in bare]
    if not symbols:
        return {token}
    if not token.startswith(prefix):
        symbols[0] = bare[0]
    if token.endswith(suffix):
        symbols[-1] += suffix
    passed = set(symbols)
    while len(symbols) > 1:
        pairs = list(itertools.pairwise(symbols))
        best = min(range(len(pairs)), key=lambda place: ranks.get(pairs[place], len(ranks)))
        if pairs[best] not in ranks:
            break
        symbols[best : best + 2] = [_joined(*pairs[best], prefix)]
        passed.add(symbols[best])
    return passed


def _renumbered(part: object, numbers: Mapping[str, int]) -> object:
    """A post-processor or padding with the new numbers of the tokens that it inserts."""
    if isinstance(part, list):
        return [_renumbered(item, numbers) for item in part]
    if not isinstance(part, dict):
        return part
    changed = {key: _renumbered(value, numbers) for key, value in part.items()}
    if "ids" in part and "tokens" in part:  # TemplateProcessing's special tokens
        changed["ids"] = [numbers[token] for token in part["tokens"]]
    for key in ("sep", "cls"):  # BertProcessing, RobertaProcessing
        if isinstance(part.get(key), list):
            changed[key] = [part[key][0], numbers[part[key][0]]]
    if "pad_id" in part:
        changed["pad_id"] = numbers[part["pad_token"]]
    return changed
