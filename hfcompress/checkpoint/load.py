"""Loading: resize a fresh model to the recorded shapes and check the files against them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfcompress.checkpoint.digests import check_digests
from hfcompress.checkpoint.packing import expect_packed, unpack_all
from hfcompress.checkpoint.record import Record, Shape
from hfcompress.checkpoint.save import write_record
from hfcompress.checkpoint.shapes import resize
from hfcompress.errors import ModelError
from hfcompress.layers.int8_linear import WEIGHT, StoredInt8
from hfcompress.models.architectures import base_prefix, blocks
from hfcompress.models.matrices import weight_matrix


def apply_record(
    model: PreTrainedModel, record: Record, files: Sequence[str] | None
) -> dict[str, str]:
    """Give a model on the meta device the recorded shapes.

    Args:
        model: as its config alone builds it; changed in place.
        record: of the checkpoint.
        files: the checkpoint's files, checked against the record and the model.

    Returns:
        The recorded name of each module of this model that the record names -> its name here.

    Raises:
        ModelError: a record that does not fit the model, files that do not fit the record, or
            files that cannot be read. Nothing has been loaded then.
    """
    if files:
        other = [file for file in files if not str(file).endswith(".safetensors")]
        if other:
            raise ModelError(f"{other[0]} is not a safetensors file; save the model again")
    stored = _stored_tensors(files or ())
    names = _names_here(model, record)
    for recorded, name in names.items():
        module = model.get_submodule(name)
        if recorded in record.modules:
            resize(module, name, record.modules[recorded])
        if recorded in record.packed:
            expect_packed(module, name, record.packed[recorded])
        if recorded in record.int8:
            _expect_int8(model, name, f"{recorded}.{WEIGHT}" in stored)
    if files:
        _check_files(model, set(names.values()), record, files[0], stored)
        check_digests(record, files)
    return names


def finish(model: PreTrainedModel, record: Record, names: dict[str, str]) -> None:
    """After loading: dense weights, and a model like any other.

    transformers treats a quantized model as one that cannot be trained or cast. This one has
    plain dense tensors, so only the config keeps what is needed to save it again.

    Args:
        model: with all tensors loaded.
        record: of the checkpoint.
        names: from `apply_record`.
    """
    unpack_all(model, [names[name] for name in record.packed if name in names])
    for name in (names[name] for name in record.int8 if name in names):
        module = model.get_submodule(name)
        if isinstance(module, StoredInt8):
            model.set_submodule(name, module.restored())
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


def _expect_int8(model: PreTrainedModel, name: str, former: bool) -> None:
    """Put what the files hold of an `Int8Linear` in a Linear's place, on the meta device.

    Args:
        model: changed in place.
        name: of the Linear.
        former: the files are of a version that stored the matrix under a name of its own.

    Raises:
        ModelError: it is not a Linear.
    """
    module = model.get_submodule(name)
    if not isinstance(module, (nn.Linear, Conv1D)):
        raise ModelError(
            f"config.json: the int8 module {name!r} is a {type(module).__name__} in this model, "
            f"not a Linear; the record belongs to another model"
        )
    outputs, inputs = weight_matrix(module).shape
    has_bias = module.bias is not None
    model.set_submodule(name, StoredInt8(outputs, inputs, has_bias, "meta", former))


def _names_here(model: PreTrainedModel, record: Record) -> dict[str, str]:
    """Recorded names -> names in a model that may be another class of the same family."""
    modules = {name for name, _ in model.named_modules()}
    found: dict[str, str] = {}
    for name in dict.fromkeys((*record.modules, *record.packed, *record.int8)):
        inside = not record.base or name == record.base or name.startswith(f"{record.base}.")
        if not inside and type(model).__name__ != record.model:
            continue  # another class's head
        here = _with_base(name, record.base, base_prefix(model)) if inside else name
        if here not in modules and _is_left_out(here, model, record):
            continue
        if here not in modules:
            raise ModelError(
                f"config.json: the recorded module {name!r} does not exist in "
                f"{type(model).__name__}; the record belongs to another model"
            )
        found[name] = here
    return found


def _is_left_out(name: str, model: PreTrainedModel, record: Record) -> bool:
    """Whether a model of another class lacks the whole part of the base that a module is in."""
    base = base_prefix(model)
    part = _with_base(name.removeprefix(f"{base}.").partition(".")[0], "", base)
    return type(model).__name__ != record.model and part not in dict(model.named_modules())


def _with_base(name: str, base: str, base_here: str) -> str:
    inner = name.removeprefix(base).removeprefix(".") if base else name
    return ".".join(part for part in (base_here, inner) if part)


def _check_files(
    model: PreTrainedModel,
    recorded: Collection[str],
    record: Record,
    file: str,
    stored: Mapping[str, tuple[Shape, str]],
) -> None:
    """Compare the files' headers with the tensors that the model now has, one by one.

    A model of another class than the recorded one may have other heads and poolers.

    Args:
        model: with the recorded shapes.
        recorded: the modules that the record names, by their names here.
        record: of the checkpoint.
        file: the checkpoint's first one, for messages.
        stored: shape and type of every tensor in them.

    Raises:
        ModelError: a tensor that is missing, that the model does not have, or of another shape or
            kind of number.
    """
    names = _stored_names(model, record, stored)
    modules = {name.rpartition(".")[0] for name in names}
    part = _Part(model, record.model == type(model).__name__, modules)
    for name, tensor in _loaded_tensors(model).items():
        is_recorded = name.rpartition(".")[0] in recorded
        saved = names.get(name)
        if saved is None:
            if is_recorded or part.must_be_stored(name):
                raise ModelError(
                    f"{file}: the tensor {name!r} is missing, which config.json "
                    f"{'records' if is_recorded else 'builds'} with the shape "
                    f"{list(tensor.shape)}; the checkpoint is not whole, save it again"
                )
        elif is_recorded or part.in_base(name):
            _compare(file, saved, stored[saved], tensor)
    own = model.state_dict().keys()
    for name, saved in names.items():
        if name not in own and part.must_be_known(name):
            raise ModelError(
                f"{file}: config.json builds no tensor for {saved!r}; "
                f"the two belong to different models"
            )


def _compare(file: str, name: str, stored: tuple[Shape, str], tensor: Tensor) -> None:
    shape, kind = stored
    if shape != tuple(tensor.shape):
        raise ModelError(
            f"{file}: the tensor {name!r} has the shape {list(shape)} and config.json records "
            f"{list(tensor.shape)}; the two belong to different models"
        )
    expected = _INTEGERS.get(tensor.dtype, "F" if tensor.is_floating_point() else kind)
    if not kind.removeprefix("B").startswith(expected):
        raise ModelError(
            f"{file}: the tensor {name!r} has the type {kind} instead of "
            f"{'a float' if expected == 'F' else expected}; the checkpoint is damaged, save it "
            f"again"
        )


_INTEGERS = {torch.uint8: "U8", torch.int8: "I8"}
"""How safetensors calls the types of bitmasks and of int8 weights; floats begin with F or BF."""


@dataclass(frozen=True)
class _Part:
    """Which tensors a checkpoint and a model must have in common.

    Attributes:
        model: the one that is loaded.
        same_class: the checkpoint is of the class that is loaded.
        stored: modules of which the checkpoint has a tensor, by their names in this model.
    """

    model: PreTrainedModel
    same_class: bool
    stored: set[str]

    def in_base(self, name: str) -> bool:
        """Whether a tensor of this model belongs to its base model."""
        base = base_prefix(self.model)
        return not base or name.startswith(f"{base}.")

    def must_be_stored(self, name: str) -> bool:
        """Whether the files must hold a tensor of this model."""
        module = name.rpartition(".")[0]
        known = module in self.stored or self._in_layers(name)
        return self.same_class or (self.in_base(name) and known)

    def must_be_known(self, name: str) -> bool:
        """Whether this model must have a tensor of the files, called so here."""
        module = name.rpartition(".")[0]
        known = module in dict(self.model.named_modules()) or self._in_layers(name)
        return self.same_class or (self.in_base(name) and known)

    def _in_layers(self, name: str) -> bool:
        lists = {block.rpartition(".")[0] for block in blocks(self.model)}
        return any(name.startswith(f"{path}.") for path in lists)


def _loaded_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors in a checkpoint of a model, without tied ones."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if name not in tied and not _ignored(model, name)
    }


def _ignored(model: PreTrainedModel, name: str) -> bool:
    """Whether transformers lets a tensor be missing, or be stored in vain."""
    patterns: list[str] = []
    for key in ("load_missing", "load_unexpected", "save"):
        patterns += getattr(model, f"_keys_to_ignore_on_{key}", None) or []
    return any(re.search(pattern, name) for pattern in patterns)


def _stored_names(
    model: PreTrainedModel, record: Record, stored: Collection[str]
) -> dict[str, str]:
    """Names of tensors in this model -> names in the files; of all that the files hold."""
    here = base_prefix(model)
    bases = dict.fromkeys((record.base, "", model.base_model_prefix))
    found: dict[str, str] = {}
    for name in model.state_dict():
        saved = next((key for key in _names_in(bases, name, here) if key in stored), None)
        if saved is not None:
            found[name] = saved
    used = set(found.values())
    for key in stored:
        if key not in used and not _ignored(model, key):
            inside = not record.base or key.startswith(f"{record.base}.")
            found[_with_base(key, record.base, here) if inside else key] = key
    return found


def _names_in(bases: Iterable[str], name: str, here: str) -> Iterator[str]:
    """What a tensor may be called in a file, which may hold another class of the family."""
    yield name
    if not here or name.startswith(f"{here}."):
        yield from (_with_base(name, here, base) for base in bases)


def _stored_tensors(files: Sequence[str]) -> dict[str, tuple[Shape, str]]:
    """Shape and type of every tensor in some safetensors files, by name."""
    found: dict[str, tuple[Shape, str]] = {}
    for file in files:
        try:
            opened: Any = safe_open(file, framework="pt")
            with opened as tensors:
                for key in tensors.keys():  # noqa: SIM118  # not a mapping
                    part = tensors.get_slice(key)
                    found[key] = tuple(part.get_shape()), part.get_dtype()
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file} cannot be read ({error}); it is damaged or cut off, copy it again"
            ) from None
    return found
