"""A model's logits and loss, a batch's labels, and the task that they belong to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from hfcompress.inference import LABELS as LABELS
from hfcompress.models.cross_encoder import is_cross_encoder
from hfcompress.models.modeling_embedding import EmbeddingModel
from hfcompress.models.outputs import ignored_label
from hfcompress.tasks.outputs import KIND_OF_PROBLEM
from hfcompress.training.hard_loss import Task
from hfcompress.utils import unwrapped

Inputs = Mapping[str, Tensor]
"""A batch by column."""
_CAUSAL = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
_TOKENS = frozenset(
    {
        *MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values(),
        *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values(),
        *_CAUSAL,
    }
)
_MASKED = frozenset(MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()) - _TOKENS
_PIXELS = frozenset(MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.values())


def infer_task(model: nn.Module, label: object = None) -> Task:
    """Return the task of a transformers model; classification for other modules.

    Args:
        model: any model; wrappers (LoRA, ``torch.compile``) do not change its task.
        label: the label of one row, if any; a vector of floats means multi_label, of class
            numbers tokens, a mask of them pixels; one float means regression.
    """
    model = unwrapped(model)
    if isinstance(model, EmbeddingModel):
        return "similarity"
    name, config = type(model).__name__, getattr(model, "config", None)
    if name in MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values():
        return "spans"
    if name in _MASKED:
        return "masked"
    if name in _PIXELS:
        return "pixels"
    if name in _TOKENS:
        return "tokens"
    if config is not None and is_cross_encoder(config):
        return "ranking"
    problem = getattr(config, "problem_type", None)
    if isinstance(problem, str) and problem in KIND_OF_PROBLEM:
        return KIND_OF_PROBLEM[problem]
    if getattr(config, "num_labels", 2) == 1:
        return "regression"
    return _task_of_label(label)


def _task_of_label(label: object) -> Task:
    if isinstance(label, (str, bytes, Mapping)) or label is None:
        return "classification"
    try:
        values = torch.as_tensor(label)
    except (TypeError, ValueError, RuntimeError):
        return "classification"
    if values.is_floating_point():
        return "multi_label" if values.dim() and values.numel() > 1 else "regression"
    if values.dim() == 2:
        return "pixels"
    return "tokens" if values.dim() else "classification"


def is_causal(model: nn.Module) -> bool:
    """Return whether a model predicts the next token, so that labels are shifted by one."""
    return type(unwrapped(model)).__name__ in _CAUSAL


def no_label(model: nn.Module) -> int:
    """Return the label that a model's loss leaves out: -100, or that of pixels in its config."""
    inner = unwrapped(model)
    pixels = type(inner).__name__ in _PIXELS
    return ignored_label(getattr(inner, "config", None)) if pixels else -100


def counted_places(model: nn.Module, inputs: Inputs) -> Tensor | None:
    """Return which tokens or pixels count in a loss on a teacher's outputs, or None where all do.

    Tokens count where they are no padding, and those of taggers and of masked language models where
    they have a label: no teacher was trained on what it says of the other pieces of a word, or of
    tokens that are neither masked nor replaced (-100). Pixels count where they have a label.
    """
    labels = inputs.get("labels")
    name = type(unwrapped(model)).__name__
    if name in _PIXELS:
        return None if labels is None else labels != no_label(model)
    mask = token_mask(model, inputs)
    if labels is None or not (name.endswith("ForTokenClassification") or name in _MASKED):
        return mask
    labelled: Tensor = labels != -100
    return labelled if mask is None else labelled & (mask != 0)


def token_mask(model: nn.Module, inputs: Inputs) -> Tensor | None:
    """Return which tokens of a batch are text and no padding, or None where nothing says so.

    It is the attention mask (an encoder-decoder's for its decoder). Without one it is where a
    causal model has a label to predict, and for other models where the token is not the padding's.
    """
    config = getattr(unwrapped(model), "config", None)
    decodes = bool(getattr(config, "is_encoder_decoder", False))
    mask = inputs.get("decoder_attention_mask" if decodes else "attention_mask")
    if mask is not None:
        return mask
    labels, ids = inputs.get("labels"), inputs.get("input_ids")
    if decodes and labels is not None:
        return labels != -100
    if is_causal(model):
        if labels is None or labels.dim() != 2:
            return None
        return torch.nn.functional.pad(labels[:, 1:] != -100, (0, 1))
    padding: int | None = getattr(config, "pad_token_id", None)
    return None if padding is None or ids is None or decodes else ids != padding


def labels_of(inputs: Inputs, names: Collection[str] = ()) -> Tensor | None:
    """Return the labels in the form of `hard_loss`, or None.

    Args:
        inputs: the batch.
        names: further columns that may hold labels.
    """
    if "start_positions" in inputs and "end_positions" in inputs:
        return torch.stack([inputs["start_positions"], inputs["end_positions"]], dim=1)
    return next((inputs[name] for name in (*LABELS, *names) if name in inputs), None)


def loss_of(outputs: object) -> Tensor | None:
    """Return the loss in a model's outputs, where ``Trainer`` looks for it, or None."""
    if isinstance(outputs, (tuple, list)):
        first = outputs[0] if outputs else None
        return first if isinstance(first, Tensor) and not first.dim() else None
    return None if isinstance(outputs, Tensor) else _entry(outputs, "loss")


def _entry(outputs: object, name: str) -> Tensor | None:
    if isinstance(outputs, Mapping):
        return cast("Tensor | None", outputs.get(name))
    found: Tensor | None = getattr(outputs, name, None)
    return found


def is_transformers(model: nn.Module) -> bool:
    """Return whether the model inside any wrappers is one of transformers."""
    return isinstance(unwrapped(model), PreTrainedModel)
