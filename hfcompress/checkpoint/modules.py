"""``save_module`` and ``load_module``: any module as safetensors and shapes, never pickle.

::

    model.safetensors    its tensors; of a packed weight a bitmask and the values that are not zero
    module.json          class, shapes before and after shrinking, what is packed, a digest

The code of a module is not saved: whoever loads it gives the class, or a function that makes the
module as it was before anything was shrunk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hfcompress.checkpoint.packing import pack, packed_bytes, unpack
from hfcompress.errors import HfcompressError, ModelError, OutputError, SourceError, first_line
from hfcompress.layers.int8_linear import Int8Linear
from hfcompress.models.card import SavedCard, origin_of, write_card
from hfcompress.models.surgery import dense_shapes, fixed_width, load_shapes, note_dense_shapes
from hfcompress.storage.temporary import replace_folder, written_beside
from hfcompress.utils import file_digest, has_digest, unwritable

WEIGHTS, RECORD = "model.safetensors", "module.json"
FORMAT = 1
_VALUES = ".values"
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModuleRecord:
    """What ``module.json`` says.

    Attributes:
        module: name of the class, for people.
        dense: shapes of the tensors before anything was shrunk.
        shapes: of the tensors that are stored, by name.
        packed: weights that are stored as bitmask and values.
        digest: SHA-256 of the file of tensors.
    """

    module: str
    dense: Shapes
    shapes: Shapes
    packed: tuple[str, ...] = ()
    digest: str = ""
    format: int = field(default=FORMAT)


@dataclass(frozen=True)
class SavedModule:
    """What `save_module` wrote.

    Attributes:
        path: the folder.
        bytes: of the file of tensors.
        packed: weights that are stored packed.
    """

    path: Path
    bytes: int
    packed: tuple[str, ...]


def save_module(model: nn.Module, directory: str | Path, sparse: bool = False) -> SavedModule:
    """Save a module, dense, pruned or shrunk, so that `load_module` gives it back::

        save_module(model, "small", sparse=True)
        model = load_module("small", Network)

    Args:
        model: any module; it is not changed. transformers models have `save_compressed`.
        directory: where to; a folder that this function wrote before is replaced.
        sparse: store weights with enough zeros as bitmask and values.

    Raises:
        ModelError: a module that cannot be given back: its weights are computed from others, or are
            in other layers' formats, or nothing says its width.
        OutputError: the folder holds something else, or cannot be written.
    """
    _check_savable(model)
    folder = Path(directory)
    if folder.exists() and (
        folder.is_file() or (any(folder.iterdir()) and not (folder / RECORD).is_file())
    ):
        raise OutputError(
            f"{str(directory)!r} contains something else; give a new folder, or one that "
            f"save_module wrote"
        )
    tensors = _distinct(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    packed = tuple(name for name, tensor in tensors.items() if sparse and _packs(tensor))
    for name in packed:
        tensors[name], tensors[f"{name}{_VALUES}"] = pack(tensors[name])
    try:
        with written_beside(folder) as temporary:
            save_file(tensors, temporary / WEIGHTS)
            digest = file_digest(temporary / WEIGHTS)
            record = ModuleRecord(_name(model), dense_shapes(model), shapes, packed, digest)
            (temporary / RECORD).write_text(f"{json.dumps(vars(record), indent=2)}\n")
            size = (temporary / WEIGHTS).stat().st_size
            write_card(temporary, _card(model, size, packed))
            replace_folder(temporary, folder)
    except OSError as error:
        raise unwritable(folder, error) from None
    return SavedModule(folder, size, packed)


def load_module(directory: str | Path, make: Callable[[], nn.Module]) -> nn.Module:
    """Load a module that `save_module` wrote, in eval mode; no code of the folder is run.

    Args:
        directory: the folder.
        make: the module's class, or a function that makes it, with the shapes that it had before
            anything was shrunk.

    Raises:
        SourceError: not a folder of `save_module`.
        ModelError: files that differ from what was saved, or a function that makes another module.
    """
    folder = Path(directory)
    record = _read(folder)
    tensors = _tensors(folder, record)
    try:
        model = make()
    except HfcompressError:
        raise
    except Exception as error:  # whatever a constructor raises
        raise ModelError(
            f"the module of {folder} cannot be made: {type(error).__name__}: {first_line(error)}; "
            f"give a class, or a function, that takes no arguments"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"what makes the module of {folder} returned {type(model).__name__}")
    _check_shapes(model, record, folder)
    _cast(model, tensors)
    load_shapes(model, tensors)
    note_dense_shapes(model, record.dense)
    return model.eval()


# --- saving ------------------------------------------------------------------------------------


def _card(model: nn.Module, size: int, packed: tuple[str, ...]) -> SavedCard:
    name = type(model).__name__
    packs = f", {len(packed)} of them packed without their zeros" if packed else ""
    return SavedCard(
        title=name, origin=origin_of(model), task=None, library="hfcompress", tags=["pytorch"],
        made=f"The tensors of a module of torch{packs}; its class makes the module.",
        code=f'from hfcompress import load_module\n\nmodel = load_module("FOLDER", {name})',
        bytes=size,
    )  # fmt: skip


def _name(model: nn.Module) -> str:
    return type(model).__qualname__


def _check_savable(model: nn.Module) -> None:
    """Refuse a module whose tensors alone do not give it back.

    Raises:
        ModelError: such a module; the sentence names the part.
    """
    for name, module in model.named_modules():
        where = name or _name(model)
        if isinstance(module, Int8Linear):
            raise ModelError(
                f"{where} is an Int8Linear, which the module's own class does not have; save the "
                f"module before that"
            )
        computed = hasattr(module, "parametrizations") or any(
            f"{key.removesuffix('_orig')}_mask" in module._buffers for key in module._parameters
        )
        if computed:
            raise ModelError(
                f"the weight of {where} is computed from other tensors; make it permanent first "
                f"(torch.nn.utils.prune.remove, remove_parametrizations)"
            )
    current = {name: tuple(value.shape) for name, value in _state(model).items()}
    lone = fixed_width(model) if current != dense_shapes(model) else None
    if lone is not None:
        raise ModelError(lone)


def _state(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    extra = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if extra:
        raise ModelError(f"{extra[0]!r} of {_name(model)} is not a tensor, and cannot be saved")
    return state


def _distinct(model: nn.Module) -> dict[str, Tensor]:
    """The tensors, on the CPU; of those that share their memory the first."""
    found: dict[str, Tensor] = {}
    seen: set[tuple[object, ...]] = set()
    for name, tensor in _state(model).items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        found[name] = tensor.detach().cpu().clone().contiguous()
    return found


def _packs(tensor: Tensor) -> bool:
    """Whether a weight is smaller as bitmask and values."""
    if tensor.dim() < 2 or not tensor.is_floating_point():
        return False
    kept = int(torch.count_nonzero(tensor))
    return packed_bytes(tensor, kept) < tensor.numel() * tensor.element_size()


# --- loading -----------------------------------------------------------------------------------


def _read(folder: Path) -> ModuleRecord:
    path = folder / RECORD
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise SourceError(f"{folder} has no {RECORD} and {WEIGHTS}; give a folder of save_module")
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        dense, shapes = (
            {str(name): tuple(map(int, shape)) for name, shape in data[key].items()}
            for key in ("dense", "shapes")
        )
        record = ModuleRecord(
            str(data["module"]), dense, shapes, tuple(map(str, data["packed"])),
            str(data["digest"]), int(data["format"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(f"{path} is not what save_module wrote; save the module again") from None
    if record.format != FORMAT:
        raise ModelError(f"{path} has the format {record.format}; install a newer hfcompress")
    return record


def _tensors(folder: Path, record: ModuleRecord) -> dict[str, Tensor]:
    """The saved tensors, dense.

    Raises:
        ModelError: files that differ from what was saved.
    """
    path = folder / WEIGHTS
    if not has_digest(path, record.digest):
        raise ModelError(f"{path} differs from what was saved; copy it again")
    try:
        stored = load_file(path)
        for name in record.packed:
            values = stored.pop(f"{name}{_VALUES}")
            stored[name] = unpack(stored[name], values, record.shapes[name])
    except (SafetensorError, KeyError, OSError) as error:
        raise ModelError(f"{path} cannot be read ({first_line(error)}); copy it again") from None
    different = [
        name for name, shape in record.shapes.items()
        if name not in stored or tuple(stored[name].shape) != shape
    ]  # fmt: skip
    if different or stored.keys() != record.shapes.keys():
        raise ModelError(f"{path} and {RECORD} belong to different modules; copy both again")
    return stored


def _check_shapes(model: nn.Module, record: ModuleRecord, folder: Path) -> None:
    """Refuse a module that is not the one that was saved, as it was before it was shrunk.

    Raises:
        ModelError: it has other tensors, or other shapes.
    """
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in {**record.dense, **own}:
        asked, made = record.dense.get(name), own.get(name)
        if asked == made:
            continue
        was = " before it was shrunk" if record.dense != record.shapes else ""
        ours = f"no {name}" if asked is None else f"{name} of the shape {list(asked)}{was}"
        theirs = "none" if made is None else f"one of the shape {list(made)}"
        raise ModelError(
            f"{folder} is of a {record.module} with {ours}, and what makes the module gives a "
            f"{_name(model)} with {theirs}; make the module as it was then"
        )


def _cast(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a module's numbers the types of the saved ones."""
    own = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        if own[name].dtype != tensor.dtype:
            own[name].data = own[name].data.to(tensor.dtype)
