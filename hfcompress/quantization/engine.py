"""``Engine``: what every backend makes of a model, and what all engines share."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from hfcompress.errors import ConfigError, DataError, ModelError
from hfcompress.quantization.images import IMAGE_INPUT
from hfcompress.quantization.manifest import MANIFEST, read_manifest
from hfcompress.storage.temporary import temporary_folder

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
SPAN_OUTPUTS = ("start_logits", "end_logits")
"""Outputs of a model that answers questions, by the names of transformers and optimum."""
Array = NDArray[np.generic]
Arrays = Mapping[str, Array]
"""One batch as a model reads it, by input name."""
Shapes = Mapping[str, tuple[int, ...]]


class Engine(Protocol):
    """A model inside the engine that runs it.

    Attributes:
        name: ``torch``, ``torchao``, ``onnxruntime`` or ``openvino``.
        inputs: names of what it reads.
    """

    name: str
    inputs: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Return the bytes of the model's own files."""
        ...

    @property
    def digest(self) -> str:
        """Hash of the model's content; equal for equal models."""
        ...

    def logits(self, arrays: Arrays) -> NDArray[np.float32]:
        """Return the logits of one batch.

        Args:
            arrays: ``input_ids`` and the like, int64 [batch, length], or ``pixel_values``.
        """
        ...

    def write(self, folder: Path) -> None:
        """Write the model's own files into an existing folder."""
        ...


def check_size(folder: Path, files: Sequence[Path]) -> None:
    """Refuse a folder whose model files do not have the size that its record names.

    Args:
        folder: of a quantized model.
        files: graph and weights.

    Raises:
        ModelError: a file is missing or cut short, or belongs to another model.
    """
    recorded = read_manifest(folder)["done"]["bytes"]
    found = sum(file.stat().st_size for file in files if file.is_file())
    if found != recorded:
        names = " and ".join(file.name for file in files)
        raise ModelError(
            f"{names} in {str(folder)!r} are {found:,} bytes and {MANIFEST} records "
            f"{recorded:,}; the folder is damaged or mixed, copy it or save the model again"
        )


class FileEngine:
    """Base of engines that run files without changing them.

    A pickle contains the files. The engine that is made from it owns a temporary folder with them.

    Attributes:
        files: the graph, and its weights if they are in a file of their own.
    """

    files: tuple[Path, ...]
    _origin: object = None
    """Another engine whose temporary folder this one uses."""

    def options(self) -> dict[str, object]:
        """Return the arguments of the engine's class, without the path and the folder."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[object, ...]:
        files = {file.name: file.read_bytes() for file in self.files}
        return restore_engine, (type(self), self.files[0].name, files, self.options())

    def __deepcopy__(self, memo: object) -> FileEngine:
        made: FileEngine = type(self)(self.files[0], **self.options())  # type: ignore[call-arg]
        made._origin = self
        return made

    @property
    def bytes(self) -> int:
        """Bytes of graph and weights."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def digest(self) -> str:
        """Hash of graph and weights."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]

    def write(self, folder: Path) -> None:
        """Copy graph and weights."""
        for file in self.files:
            shutil.copyfile(file, folder / file.name)


def restore_engine(
    kind: Callable[..., Engine],
    main: str,
    files: Mapping[str, bytes],
    options: Mapping[str, object],
) -> Engine:
    """Return an engine over files in a temporary folder that is deleted with it.

    Args:
        kind: its class.
        main: name of the file, or "" for the folder, that the class takes.
        files: name -> content.
        options: the class's other arguments.
    """
    folder = temporary_folder()
    try:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return kind(folder / main, folder=folder, **options)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@runtime_checkable
class StaticShapeEngine(Protocol):
    """An engine that runs batches of one shape faster if it is compiled for that shape alone."""

    def with_shapes(self, shapes: Shapes) -> Engine:
        """Return an engine with the same model for that shape; this one does not change.

        Args:
            shapes: of every array of a batch.

        Raises:
            ModelError: the model cannot have that shape.
        """
        ...


def with_static_shape(engine: Engine, arrays: Arrays) -> Engine:
    """Return an engine for batches of these arrays' shape alone where that is faster (OpenVINO);
    else the engine itself.

    Raises:
        ModelError: the model cannot have that shape.
    """
    if not isinstance(engine, StaticShapeEngine):
        return engine
    return engine.with_shapes({name: value.shape for name, value in arrays.items()})


def thread_count(threads: int | None) -> int:
    """Return the number of threads for an engine: the given one, or torch's.

    By default engines use all cores whatever torch's number is, which makes them faster than
    torch in any comparison, and ONNX Runtime pins its threads to cores that other sessions may
    use.
    """
    return threads or torch.get_num_threads()


def check_inputs(inputs: tuple[str, ...], where: str, expected: Sequence[str] = ()) -> None:
    """Refuse a graph with other inputs than a classifier's.

    Args:
        inputs: names in the graph.
        where: the file, for the message.
        expected: names of the inputs of a module that is not a transformers model.

    Raises:
        ModelError: an unknown name, or neither tokens nor pixels.
    """
    known = (*TEXT_INPUTS, IMAGE_INPUT)
    if expected and set(inputs) == set(expected):
        return
    unknown = [name for name in inputs if name not in known]
    if unknown or not {"input_ids", IMAGE_INPUT} & set(inputs):
        raise ModelError(
            f"{where} reads {', '.join(inputs) or 'nothing'}; a classifier reads "
            f"{', '.join(TEXT_INPUTS)} or {IMAGE_INPUT}, so export the model anew"
        )


def select_inputs(arrays: Arrays, inputs: tuple[str, ...]) -> dict[str, Array]:
    """Return the arrays that a graph reads; a missing mask is all ones, missing token types 0.

    Raises:
        DataError: another input is missing.
    """
    given = dict(arrays)
    if "input_ids" in given:
        given.setdefault("attention_mask", np.ones_like(given["input_ids"]))
        given.setdefault("token_type_ids", np.zeros_like(given["input_ids"]))
    missing = [name for name in inputs if name not in given]
    if missing:
        raise DataError(
            f"the model reads {', '.join(inputs)} and the batch has {', '.join(arrays)}; "
            f"{missing[0]} is missing"
        )
    return {name: _as_read(name, given[name]) for name in inputs}


def logit_outputs(names: Sequence[str]) -> tuple[str, ...]:
    """Return the outputs of a graph that are its logits: the first, or an answer's two ends."""
    return SPAN_OUTPUTS if set(SPAN_OUTPUTS) <= set(names) else tuple(names[:1])


def join_logits(parts: Sequence[Array]) -> NDArray[np.float32]:
    """Return the values of `logit_outputs` as one array; of an answer's ends [batch, 2, tokens]."""
    whole = np.stack(parts, axis=1) if len(parts) > 1 else parts[0]
    return np.array(whole, np.float32)


def without_padding(logits: NDArray[np.float32], padded: int, tokens: int) -> NDArray[np.float32]:
    """Return logits without those of tokens that an engine's shape has added.

    Args:
        logits: [batch, outputs] as they are; [batch, tokens, classes] and [batch, 2, tokens] cut.
        padded: tokens that the engine read.
        tokens: tokens that it was given.
    """
    if logits.ndim != 3 or tokens == padded:
        return logits
    return logits[:, :tokens] if logits.shape[1] == padded else logits[:, :, :tokens]


def unreadable(arrays: Arrays, error: Exception) -> DataError:
    """Return the error for a batch that an engine cannot run."""
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    reason = next((line for line in str(error).splitlines() if line.strip()), "")
    return DataError(f"the model cannot read a batch of {shapes}: {reason.strip()}")


def _as_read(name: str, array: Array) -> Array:
    """Return token ids and masks as int64, and floats as fp32, as the engines read them."""
    if name in TEXT_INPUTS:
        return array.astype(np.int64, copy=False)
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def _token_count(arrays: Arrays) -> int:
    """Return the tokens of a batch's texts; 0 for other inputs."""
    return next((value.shape[1] for name, value in arrays.items() if name in TEXT_INPUTS), 0)


class StaticShape:
    """Pads batches to one shape and runs them in an engine compiled for it at the first batch.

    Args:
        engine: for any shape.
        shape: examples and tokens; images keep their own size.
        pad_id: the tokenizer's; decoders find the last token of a text by it.

    Raises:
        ConfigError: a size below 1.
    """

    def __init__(self, engine: Engine, shape: tuple[int, int], pad_id: int = 0) -> None:
        if len(shape) != 2 or min(shape) < 1:
            raise ConfigError(f"shape is examples and tokens, such as (1, 32), not {shape}")
        self._engine, self._shape, self._pad_id = engine, shape, pad_id
        self._compiled: Engine | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_compiled": None}  # compiled again at the first batch

    def fits(self, arrays: Arrays) -> bool:
        """Return whether the engine has static shapes and a batch is no larger than this one."""
        return isinstance(self._engine, StaticShapeEngine) and all(
            size <= limit
            for name, value in arrays.items()
            for size, limit in zip(value.shape, self._limits(name, value), strict=True)
        )

    def logits(self, arrays: Arrays) -> NDArray[np.float32]:
        """Return the logits of a batch that fits.

        Raises:
            ModelError: the engine refuses the shape.
        """
        rows = len(next(iter(arrays.values())))
        padded = self._padded(arrays)
        if self._compiled is None:
            self._compiled = with_static_shape(self._engine, padded)
        logits = self._compiled.logits(padded)[:rows]
        return without_padding(logits, self._shape[1], _token_count(arrays))

    def _padded(self, arrays: Arrays) -> Arrays:
        """Append padding tokens without attention, and padding examples."""
        return {
            name: np.pad(
                value,
                [
                    (0, limit - size)
                    for size, limit in zip(value.shape, self._limits(name, value), strict=True)
                ],
                constant_values=self._pad_id if name == "input_ids" else 0,
            )
            for name, value in arrays.items()
        }

    def _limits(self, name: str, value: Array) -> tuple[int, ...]:
        return self._shape if name in TEXT_INPUTS else (self._shape[0], *value.shape[1:])
