"""``shrink_vocabulary``: embedding and tokenizer lose the same tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfcompress.checkpoint.save import record_shapes
from hfcompress.errors import ModelError
from hfcompress.measure.size import count_parameters
from hfcompress.models.surgery import keep_outputs, keep_rows, resized
from hfcompress.shrinking.vocabulary.tokenizer import CutTokenizer, VocabularyConfig, cut_tokenizer
from hfcompress.utils import FormerPlain, check_pretrained


@dataclass(frozen=True)
class VocabularyReport(FormerPlain):
    """The vocabulary before and after.

    Attributes:
        tokens_before: rows of the embedding before.
        tokens: rows now.
        parameters_before: of the whole model.
        parameters: of the whole model now.
    """

    tokens_before: int
    tokens: int
    parameters_before: int
    parameters: int

    def to_dict(self) -> dict[str, int]:
        """As data that JSON can hold."""
        return asdict(self)


def shrink_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    config: VocabularyConfig | None = None,
) -> tuple[PreTrainedTokenizerBase, VocabularyReport]:
    """Keep the tokens that a corpus uses (TextPruner, 2203.15996).

    The corpus is split as before and the model says the same of it; any other text is split into
    kept pieces. Single characters and special tokens stay. The checkpoint is plain.

    Args:
        model: changed in place: embedding, output layer over tokens, config.
        tokenizer: the model's fast tokenizer, WordPiece or BPE (byte-level too); left as it is.
        texts: the corpus.
        config: which tokens stay.

    Returns:
        The new tokenizer, and the report.

    Raises:
        CalibrationError: a corpus that shares no token with the tokenizer.
        ModelError: a tokenizer of another kind, or one that does not belong to the model.
    """
    check_pretrained(model, "shrink_vocabulary", "shrink removes columns of any embedding")
    cut = cut_tokenizer(tokenizer, texts, config, required_tokens(model))
    return cut.tokenizer, apply_cut(model, cut)


def apply_cut(model: PreTrainedModel, cut: CutTokenizer) -> VocabularyReport:
    """Make a model read what a cut tokenizer writes.

    Raises:
        ModelError: a tokenizer that does not belong to the model.
    """
    rows, parameters = _embedding(model).num_embeddings, count_parameters(model)
    keep_tokens(model, cut.kept)
    return VocabularyReport(rows, len(cut.kept), parameters, count_parameters(model))


def required_tokens(model: PreTrainedModel) -> list[int]:
    """Numbers of the tokens that the model's config names (padding, start, end ...)."""
    numbers: set[int] = set()
    for _, value in _token_fields(model):
        numbers |= set(value if isinstance(value, list) else [value])
    if _positions_follow_padding(model):
        numbers |= set(range(model.config.pad_token_id))
    return sorted(numbers)


def keep_tokens(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Keep some tokens in the embedding, the output layer over tokens, and the config.

    Args:
        model: changed in place.
        kept: old number of each token, by new number.

    Raises:
        ModelError: a number that the embedding does not have.
    """
    embedding = _embedding(model)
    rows = embedding.num_embeddings
    if not kept or max(kept) >= rows:
        raise ModelError(
            f"the tokenizer has a token {max(kept, default=0):,} and the model {rows:,} rows; "
            f"give the model's own tokenizer"
        )
    places = {old: new for new, old in enumerate(kept)}
    if _positions_follow_padding(model) and places.get(model.config.pad_token_id) != (
        model.config.pad_token_id
    ):
        raise ModelError(
            "the model counts positions from the number of its padding token, which would change"
        )
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tied = output is not None and output.weight is embedding.weight
    keep_rows(embedding, kept)
    if isinstance(output, nn.Linear):
        _keep_scores(model, output, kept, tied)
    for (settings, name), value in list(_token_fields(model)):
        new = [places[number] for number in value] if isinstance(value, list) else places[value]
        setattr(settings, name, new)
    record_shapes(model)


def _keep_scores(model: nn.Module, output: nn.Linear, kept: Sequence[int], tied: bool) -> None:
    """Cut the layer that scores every token; a tied weight has been cut with the embedding."""
    rows = output.out_features
    if not tied:
        keep_outputs(output, kept)
    elif output.bias is not None:
        output.bias.data = output.bias.data[list(kept)]
    resized(output)
    # BERT's head has a bias of its own beside the layer's, which may or may not be the same one.
    parent = next(module for module in model.modules() if output in module.children())
    for parameter in parent.parameters(recurse=False):
        if parameter.shape == (rows,):
            parameter.data = parameter.data[list(kept)]


def _token_fields(model: PreTrainedModel) -> list[tuple[tuple[object, str], int | list[int]]]:
    """Every setting that is a token's number, or a list of them."""
    found = []
    for settings in (model.config, getattr(model, "generation_config", None)):
        for name, value in vars(settings).items() if settings is not None else ():
            numbers = value if isinstance(value, list) else [value]
            if name.endswith("_token_id") and all(
                isinstance(number, int) and number >= 0 for number in numbers
            ):
                found.append(((settings, name), value))
    return found


def _positions_follow_padding(model: PreTrainedModel) -> bool:
    """RoBERTa's kin number positions from the padding token's number on."""
    embedding = _embedding(model)
    return any(
        isinstance(getattr(module, "padding_idx", None), int) and module is not embedding
        for module in model.modules()
    )


def _embedding(model: PreTrainedModel) -> nn.Embedding:
    found = model.get_input_embeddings()
    if not isinstance(found, nn.Embedding):
        raise ModelError(f"{type(model).__name__} has no embedding of tokens to cut")
    return found
