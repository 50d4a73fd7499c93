"""Loading: resize a fresh model to the recorded shapes and check the files against them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfcompress.checkpoint.packing import expect_packed, unpack_all
from hfcompress.checkpoint.record import Record, Shape
from hfcompress.checkpoint.save import write_record
from hfcompress.checkpoint.shapes import resize
from hfcompress.errors import ModelError
from hfcompress.layers.int8_linear import Int8Linear
from hfcompress.models.architectures import base_prefix, weight_matrix


def apply_record(
    model: PreTrainedModel, record: Record, files: Sequence[str] | None
) -> dict[str, str]:
    """Give a model on the meta device the recorded shapes.

    Args:
        model: as its config alone builds it; changed in place.
        record: what the checkpoint says.
        files: the checkpoint's files, checked against the record where they are safetensors.

    Returns:
        The recorded name of each module of this model that the record names -> its name here.

    Raises:
        ModelError: a record that does not fit the model, files that do not fit the record, or
            files that cannot be read. Nothing has been loaded then.
    """
    names = _names_here(model, record)
    for recorded, name in names.items():
        module = model.get_submodule(name)
        if recorded in record.modules:
            resize(module, name, record.modules[recorded])
        if recorded in record.packed:
            expect_packed(module, name, record.packed[recorded])
        if recorded in record.int8:
            _expect_int8(model, name)
    if files and all(str(file).endswith(".safetensors") for file in files):
        _check_files(model, list(names.values()), record.base, files)
    return names


def finish(model: PreTrainedModel, record: Record, names: dict[str, str]) -> None:
    """After loading: dense weights, and a model like any other.

    transformers treats a quantized model as one that cannot be trained or cast. This one holds
    plain dense tensors, so only the config keeps what is needed to save it again.

    Args:
        model: with all tensors loaded.
        record: what the checkpoint said.
        names: from `apply_record`.
    """
    unpack_all(model, [names[name] for name in record.packed if name in names])
    here = Record(
        type(model).__name__,
        base_prefix(model),
        {names[name]: shapes for name, shapes in record.modules.items() if name in names},
        int8=tuple(names[name] for name in record.int8 if name in names),
    )
    write_record(model, here)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.__dict__.pop("_is_quantized", None)
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(name, None)


def _expect_int8(model: PreTrainedModel, name: str) -> None:
    """Put an `Int8Linear` of the same shape in a Linear's place, on the meta device."""
    module = model.get_submodule(name)
    if not isinstance(module, (nn.Linear, Conv1D)):
        raise ModelError(
            f"config.json: the int8 module {name!r} is a {type(module).__name__} in this model, "
            f"not a Linear; the record belongs to another model"
        )
    outputs, inputs = weight_matrix(module).shape
    model.set_submodule(name, Int8Linear(outputs, inputs, module.bias is not None, "meta"))


def _names_here(model: PreTrainedModel, record: Record) -> dict[str, str]:
    """Recorded names -> names in a model that may be another class of the same family."""
    modules = {name for name, _ in model.named_modules()}
    found: dict[str, str] = {}
    for name in dict.fromkeys((*record.modules, *record.packed, *record.int8)):
        inside = not record.base or name == record.base or name.startswith(f"{record.base}.")
        if not inside and type(model).__name__ != record.model:
            continue  # another class's head
        here = _with_base(name, record.base, base_prefix(model)) if inside else name
        if here not in modules:
            raise ModelError(
                f"config.json: the recorded module {name!r} does not exist in "
                f"{type(model).__name__}; the record belongs to another model"
            )
        found[name] = here
    return found


def _with_base(name: str, base: str, base_here: str) -> str:
    inner = name.removeprefix(base).removeprefix(".") if base else name
    return ".".join(part for part in (base_here, inner) if part)


def _check_files(
    model: PreTrainedModel, names: Sequence[str], base: str, files: Sequence[str]
) -> None:
    """Compare the files' headers with the shapes that the model now has."""
    stored = _stored_shapes(files)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    here = base_prefix(model)
    for name in names:
        module = model.get_submodule(name)
        for key, tensor in module.state_dict(keep_vars=True).items():
            full = f"{name}.{key}"
            if full in tied or "." in key:
                continue
            shape = tuple(tensor.shape)
            bases = dict.fromkeys((base, "", model.base_model_prefix))
            saved = next((key for key in _names_in(bases, full, here) if key in stored), None)
            if saved is None:
                raise ModelError(
                    f"{files[0]}: the tensor {full!r} is missing, recorded in config.json with "
                    f"the shape {list(shape)}; the checkpoint is not whole, save it again"
                )
            if stored[saved] != shape:
                raise ModelError(
                    f"{files[0]}: the tensor {saved!r} has the shape {list(stored[saved])} and "
                    f"config.json records {list(shape)}; the two belong to different models"
                )


def _names_in(bases: Iterable[str], name: str, here: str) -> Iterator[str]:
    """What a tensor may be called in a file, which may hold another class of the family."""
    yield name
    if not here or name.startswith(f"{here}."):
        yield from (_with_base(name, here, base) for base in bases)


def _stored_shapes(files: Sequence[str]) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for file in files:
        try:
            opened: Any = safe_open(file, framework="pt")
            with opened as tensors:
                for key in tensors.keys():  # noqa: SIM118  # not a mapping
                    shapes[key] = tuple(tensors.get_slice(key).get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file} cannot be read ({error}); it is damaged or cut off, copy it again"
            ) from None
    return shapes
