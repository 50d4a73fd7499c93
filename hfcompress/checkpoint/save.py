"""``record_shapes``: after surgery, make a model's config say how to build the model again."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hfcompress.checkpoint.record import METHOD, Record
from hfcompress.checkpoint.shapes import built_from_config, difference
from hfcompress.errors import ModelError
from hfcompress.models.architectures import blocks, family_of, weight_matrix


def record_shapes(model: PreTrainedModel) -> Record:
    """Make ``model.save_pretrained`` write a checkpoint that ``from_pretrained`` loads again.

    Call it after heads, neurons, layers or tokens have gone. Where one width holds for all layers
    and the config has a field for it, the field is set and the checkpoint stays plain. What the
    config cannot say goes into ``config.quantization_config``, which transformers reads with
    hfcompress imported. Training on, saving again and Trainer checkpoints need no further call.

    Args:
        model: its config is changed in place, its tensors are not read.

    Returns:
        What the config could not say; false where the checkpoint is plain.

    Raises:
        ModelError: the model differs from its config in more than shapes, or it is quantized.
    """
    refuse_quantized(model)
    _say_in_config(model)
    record = difference(model, built_from_config(model))
    write_record(model, record)
    return record


def write_record(model: PreTrainedModel, record: Record) -> None:
    """Put a record into a model's config, or take an old one out where there is nothing to say."""
    config: Any = model.config
    if record:
        config.quantization_config = record.plain()
        # transformers would save some families under the tensor names of older releases; the
        # record is checked against the files, and both speak of the model's own names.
        vars(model)["_weight_conversions"] = []
        model.add_model_tags(["hfcompress"])  # push_to_hub writes it into the model card
    elif hasattr(config, "quantization_config"):
        del config.quantization_config


def refuse_quantized(model: PreTrainedModel) -> None:
    """Refuse a model that another library has quantized.

    Raises:
        ModelError: it is.
    """
    settings: Any = getattr(model.config, "quantization_config", None)
    if settings is None:
        return
    plain = settings if isinstance(settings, dict) else settings.to_dict()
    if plain.get("quant_method") != METHOD:
        raise ModelError(
            f"{type(model).__name__} is quantized ({plain.get('quant_method')}); "
            f"shrink it first and quantize it afterwards"
        )


def _say_in_config(model: PreTrainedModel) -> None:
    """Set the fields that can express what was removed."""
    config: Any = model.config
    embedding = _input_embedding(model)
    if embedding is not None and getattr(config, "vocab_size", None) is not None:
        config.vocab_size = embedding.num_embeddings
    family = family_of(model)
    if family is None:
        return
    layers = list(blocks(model).values())
    if not family.staged:
        config.num_hidden_layers = len(layers)
    widths = {weight_matrix(layer.get_submodule(family.ffn_out)).shape[1] for layer in layers}
    if len(widths) == 1 and getattr(config, family.ffn_width, None) is not None:
        setattr(config, family.ffn_width, widths.pop())


def _input_embedding(model: PreTrainedModel) -> nn.Embedding | None:
    try:
        found = model.get_input_embeddings()
    except NotImplementedError:  # models of images
        return None
    return found if isinstance(found, nn.Embedding) else None
