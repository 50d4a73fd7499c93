"""``record_shapes`` and ``save_compressed``: write a model so that ``from_pretrained`` loads it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfcompress.checkpoint.digests import write_digests
from hfcompress.checkpoint.packing import BITMASK, PACKABLE, VALUES, pack, packed_bytes
from hfcompress.checkpoint.record import METHOD, RECORD, Record
from hfcompress.checkpoint.shapes import built_from_config, difference
from hfcompress.errors import ModelError
from hfcompress.models.architectures import blocks, family_of
from hfcompress.models.card import SavedCard, origin_of, write_card
from hfcompress.models.matrices import weight_matrix
from hfcompress.storage.temporary import written_beside
from hfcompress.utils import check_pretrained, unwritable


def record_shapes(model: PreTrainedModel) -> Record:
    """Make ``model.save_pretrained`` write a checkpoint that ``from_pretrained`` loads again.

    Call it after removing heads, neurons, layers or tokens. Where all layers have one width
    and the config has a field for it, the field is set and the checkpoint stays plain. What the
    config cannot express goes into ``config.quantization_config``, which transformers reads with
    hfcompress imported. Training on, saving again and Trainer checkpoints need no further call.

    Args:
        model: its config is changed in place, its tensors are not read.

    Returns:
        what the config cannot express; false if the checkpoint is plain.

    Raises:
        ModelError: the model differs from its config in more than shapes, it is quantized, or it
            is none of transformers.
    """
    check_pretrained(model, "record_shapes", "save_module(model, folder) saves any module")
    refuse_quantized(model)
    _update_config(model)
    record = difference(model, built_from_config(model))
    write_record(model, record)
    return record


def write_record(model: PreTrainedModel, record: Record) -> None:
    """Write a record into a model's config; an empty one removes what was there."""
    config = model.config
    if record:
        config.quantization_config = record.to_dict()
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
    settings = getattr(model.config, "quantization_config", None)
    if settings is None:
        return
    plain = settings if isinstance(settings, dict) else settings.to_dict()
    if plain.get("quant_method") != METHOD:
        raise ModelError(
            f"{type(model).__name__} is quantized ({plain.get('quant_method')}); "
            f"shrink it first and quantize it afterwards"
        )


def _update_config(model: PreTrainedModel) -> None:
    """Set the config fields that can express the model's sizes."""
    config = model.config
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


@dataclass(frozen=True)
class SavedBytes:
    """Sizes of the packed weights.

    Attributes:
        packed: number of packed weights.
        dense_bytes: their size as dense tensors.
        bytes: their size packed.
    """

    packed: int
    dense_bytes: int
    bytes: int


def save_compressed(
    model: PreTrainedModel, directory: str | Path, sparse: bool = False
) -> SavedBytes:
    """Save a pruned or shrunk model so that ``from_pretrained(directory)`` gives it back.

    After ``import hfcompress``, that is, where a width per layer or packed weights need it; the
    folder's model card says so (one that is already there is kept).

    Args:
        model: of any shapes, see `record_shapes`.
        directory: created if missing; files of earlier saves are replaced atomically, one by one.
        sparse: store weights of Linears and convolutions as bitmask and non-zero values where
            that is smaller (from 4 % zeros on in fp32); they are dense again in memory, bit for
            bit but for the sign of zeros.

    Returns:
        the sizes of the packed weights.

    Raises:
        ModelError: as `record_shapes`.
        OutputError: the folder cannot be written.
    """
    check_pretrained(model, "save_compressed", "save_module(model, folder) saves any module")
    record = record_shapes(model)
    weights = _worth_packing(model) if sparse else {}
    state = {} if not weights else dict(model.state_dict())
    size = 0
    for name in weights:
        bitmask, values = pack(state.pop(f"{name}.weight"))
        state[f"{name}.{BITMASK}"], state[f"{name}.{VALUES}"] = bitmask, values
        size += bitmask.nbytes + values.nbytes
    packed = {name: len(state[f"{name}.{VALUES}"]) for name in weights}
    write_record(model, replace(record, packed=packed))
    try:
        _save(model, Path(directory), state or None)
    finally:
        write_record(model, record)  # in memory the weights are dense
    return SavedBytes(len(weights), sum(weight.nbytes for weight in weights.values()), size)


def _worth_packing(model: nn.Module) -> dict[str, Tensor]:
    """Weights that no other module shares and that take less packed, by module name."""
    uses = Counter(id(tensor) for _, tensor in model.named_parameters(remove_duplicate=False))
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if isinstance(module, PACKABLE) and weight is not None and uses[id(weight)] == 1:
            nonzeros = int(torch.count_nonzero(weight))
            if packed_bytes(weight, nonzeros) < weight.nbytes:
                found[name] = weight
    return found


def _save(model: PreTrainedModel, directory: Path, state: dict[str, Tensor] | None) -> None:
    """Write beside the folder first: what can go wrong leaves the old files as they were."""
    try:
        with written_beside(directory) as temporary:
            model.save_pretrained(temporary, state_dict=state)
            write_digests(temporary)
            directory.mkdir(exist_ok=True)
            for file in sorted(temporary.rglob("*")):
                target = directory / file.relative_to(temporary)
                if file.is_dir():
                    target.mkdir(exist_ok=True)
                else:
                    os.replace(file, target)
    except (OSError, SafetensorError) as error:
        raise unwritable(directory, error) from None
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    write_card(directory, _card(model, size))


def _card(model: PreTrainedModel, size: int) -> SavedCard:
    import transformers

    from hfcompress.tasks.registry import task_of_model

    task = task_of_model(model)
    name = type(model).__name__ if task is None else task.auto_class().__name__
    room = "transformers" if hasattr(transformers, name) else "hfcompress"
    code = f'from {room} import {name}\n\nmodel = {name}.from_pretrained("FOLDER")'
    lines = []
    if hasattr(model.config, RECORD):
        lines = ["Its shapes or packed weights are not what `config.json` alone would build, so "
                 "import hfcompress before loading it."]  # fmt: skip
        code = f"import hfcompress  # so that transformers knows the shapes\n{code}"
    weights = [weight for weight in model.parameters() if weight.dim() > 1]
    zeros = sum(weight.numel() - int(weight.count_nonzero()) for weight in weights)
    count = sum(weight.numel() for weight in weights)
    lines.append(f"{zeros:,} of {count:,} weights of its matrices are zero.")
    pruned = ["pruned"] if zeros > count // 100 else []
    return SavedCard(
        type(model).__name__, origin_of(model), None if task is None else task.name,
        "transformers", pruned, " ".join(lines), code, size,
    )  # fmt: skip
