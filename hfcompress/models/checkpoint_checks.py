"""A checkpoint that is damaged ends in one sentence, and none of it is filled with random numbers.

transformers reports what a file lacks and goes on with new weights, which is right for a head that
is to be trained and for nothing else.
"""

from __future__ import annotations

import json
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from hfcompress.errors import HfcompressError, ModelError, first_line
from hfcompress.models.architectures import base_prefix, blocks
from hfcompress.models.hub import Source

_READ = (".json", ".safetensors", ".txt", ".model", ".bin", ".jinja", ".onnx", ".xml", ".data")
_LARGEST_HEADER = 100_000_000  # bytes; that of safetensors itself
# Counters that checkpoints of older versions of torch lack.
_MAY_BE_MISSING = ("num_batches_tracked",)


@contextmanager
def folder_errors(source: Source, name: str) -> Iterator[None]:
    """`checkpoint_errors` for a model in a folder; the hub's errors pass.

    Args:
        source: of the model.
        name: what messages call it.
    """
    if source.path is None:
        yield
        return
    check_files(source.path, name)
    with checkpoint_errors(name):
        yield


@contextmanager
def checkpoint_errors(name: str) -> Iterator[None]:
    """Convert whatever the libraries raise over a folder of a model into a `ModelError`.

    Raises:
        ModelError: the body raised anything but an error of ours or a package that is missing.
    """
    try:
        yield
    except (HfcompressError, ImportError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of Rust's tokenizers is no Exception
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{name} names code of its own; hfcompress runs no code of a model unless the "
                f"recipe says model.trust_remote_code: true and you give --trust-remote-code"
            ) from None
        raise ModelError(
            f"{name} cannot be loaded ({first_line(error)}); it is damaged or of another kind, "
            f"copy it again or save the model again"
        ) from error


def check_files(folder: Path, name: str) -> None:
    """Refuse a folder in which something that is read is not a file (a pipe, a device, a folder).

    Raises:
        ModelError: there is one.
    """
    for path in sorted(folder.iterdir()):
        try:
            mode = path.stat().st_mode
        except OSError:  # a link to nothing, or to itself
            mode = 0
        if path.suffix in _READ and not stat.S_ISREG(mode):
            raise ModelError(f"{name}: {path.name} is not a file; save the model again")


def check_layers(folder: Path, config: PreTrainedConfig, name: str) -> None:
    """Refuse a config that asks for more layers than the files have tensors, before any is built.

    Raises:
        ModelError: it does.
    """
    tensors = _tensors(folder)
    layers = getattr(config, "num_hidden_layers", None)
    depths = getattr(config, "depths", None) or ()
    counts = [layers, *(depths if isinstance(depths, (list, tuple)) else ())]
    largest = max((count for count in counts if isinstance(count, int)), default=0)
    if tensors and largest > tensors:
        raise ModelError(
            f"{name}: config.json asks for {largest:,} layers and the files have {tensors:,} "
            f"tensors; the two belong to different models"
        )


def _tensors(folder: Path) -> int:
    """How many tensors the safetensors files of a folder say that they have."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            size = stream.read(8)
            length = struct.unpack("<Q", size)[0] if len(size) == 8 else 0
            if length > min(_LARGEST_HEADER, path.stat().st_size):
                return 0  # safetensors says it better
            try:
                count += len(json.loads(stream.read(length)))
            except (ValueError, RecursionError, TypeError):
                return 0
    return count


def check_tensors(model: nn.Module, info: Mapping[str, Iterable[Any]], name: str) -> None:
    """Refuse a model of which a part came from its file and another part is new.

    A part that the file does not have at all (a head, a pooler) may be new.

    Args:
        model: as loaded.
        info: what transformers says of the loading.
        name: what messages call the model.

    Raises:
        ModelError: a tensor is missing or has another shape in a part that the file has, or the
            file has layers that the model does not build.
    """
    missing, mismatched = set(info["missing_keys"]), {item[0] for item in info["mismatched_keys"]}
    base = base_prefix(model)
    # A head's tensor that is tied to an embedding is there without the file's saying so.
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    loaded = model.state_dict().keys() - missing - tied
    parts = {_part(key, base) for key in loaded}
    for key in sorted(missing):
        if _part(key, base) in parts and not key.endswith(_MAY_BE_MISSING):
            raise _unlike(name, key, "is missing in the file")
    for key in sorted(mismatched):
        if base and key.startswith(f"{base}."):
            raise _unlike(name, key, "has another shape in the file")
    lists = {block.rpartition(".")[0] for block in blocks(model)}
    for key in sorted(info["unexpected_keys"]):
        if any(key.startswith(f"{path}.") for path in lists):
            raise _unlike(name, key, "is in the file and not in the model")


def _part(key: str, base: str) -> str:
    """The part of a model that a tensor belongs to: ``bert.encoder``, ``classifier``."""
    inner = key.removeprefix(f"{base}.") if base else key
    return f"{'' if inner == key else base}.{inner.partition('.')[0]}"


def _unlike(name: str, key: str, problem: str) -> ModelError:
    return ModelError(
        f"{name}: the tensor {key!r} {problem}; weights and config.json do not belong together or "
        f"are damaged, copy the model again"
    )
