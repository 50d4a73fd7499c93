"""What every backend gives: something that turns arrays into logits and can be written down."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from hfcompress.errors import ConfigError, DataError, ModelError
from hfcompress.quantization.onnx_export import IMAGE_INPUT, TEXT_INPUTS

Arrays = Mapping[str, NDArray[Any]]
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
        """Bytes of the model's own files."""
        ...

    @property
    def digest(self) -> str:
        """Hash of the model's content: equal models, equal digits."""
        ...

    def logits(self, arrays: Arrays) -> NDArray[np.float32]:
        """Logits of one batch.

        Args:
            arrays: ``input_ids`` and the like, int64 [batch, length], or ``pixel_values``.
        """
        ...

    def write(self, folder: Path) -> None:
        """Write the model's own files into a folder that is there and is nobody else's."""
        ...


class FileEngine:
    """What engines share that run files as they are.

    Attributes:
        files: the graph, and what lies beside it.
    """

    files: tuple[Path, ...]

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


@runtime_checkable
class Fixable(Protocol):
    """An engine that is faster for batches of one shape alone."""

    def fixed(self, shapes: Shapes) -> Engine:
        """The same model for that shape; this one stays as it is.

        Args:
            shapes: of every array that a batch holds.

        Raises:
            ModelError: the model cannot have that shape.
        """
        ...


def fixed(engine: Engine, arrays: Arrays) -> Engine:
    """The same model for batches of these arrays' shape alone, where its engine is faster so
    (OpenVINO); else the engine itself.

    Raises:
        ModelError: the model cannot have that shape.
    """
    if not isinstance(engine, Fixable):
        return engine
    return engine.fixed({name: value.shape for name, value in arrays.items()})


def thread_count(threads: int | None) -> int:
    """How many threads an engine takes: torch's number unless told another.

    Left to themselves engines take all cores whatever torch was told, which makes them faster than
    torch in any comparison, and ONNX Runtime ties its threads to cores, where they can meet others.
    """
    return threads or torch.get_num_threads()


def check_inputs(inputs: tuple[str, ...], where: str) -> None:
    """Refuse a graph that reads what we cannot give.

    Args:
        inputs: names in the graph.
        where: the file, for the message.

    Raises:
        ModelError: an unknown name, or neither tokens nor pixels.
    """
    known = (*TEXT_INPUTS, IMAGE_INPUT)
    unknown = [name for name in inputs if name not in known]
    if unknown or not {"input_ids", IMAGE_INPUT} & set(inputs):
        raise ModelError(
            f"{where} reads {', '.join(inputs) or 'nothing'}; a classifier reads "
            f"{', '.join(TEXT_INPUTS)} or {IMAGE_INPUT}, so export the model anew"
        )


def arranged(arrays: Arrays, inputs: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """What the graph reads, of what a batch holds; token types that are not given are 0.

    Raises:
        DataError: something else is missing.
    """
    given = dict(arrays)
    if "input_ids" in given:
        given.setdefault("attention_mask", np.ones_like(given["input_ids"]))
        given.setdefault("token_type_ids", np.zeros_like(given["input_ids"]))
    missing = [name for name in inputs if name not in given]
    if missing:
        raise DataError(
            f"the model reads {', '.join(inputs)} and the batch holds {', '.join(arrays)}; "
            f"{missing[0]} is missing"
        )
    return {name: given[name] for name in inputs}


class UsualShape:
    """Batches of up to one shape, computed in that shape; compiled when the first one comes.

    Args:
        engine: for any shape.
        shape: examples and tokens; images have their own size.
        pad_id: the tokenizer's; decoders find the last token of a text by it.

    Raises:
        ConfigError: a size below 1.
    """

    def __init__(self, engine: Engine, shape: tuple[int, int], pad_id: int = 0) -> None:
        if len(shape) != 2 or min(shape) < 1:
            raise ConfigError(f"shape is examples and tokens, such as (1, 32), not {shape}")
        self._engine, self._shape, self._pad_id = engine, shape, pad_id
        self._made: Engine | None = None

    def takes(self, arrays: Arrays) -> bool:
        """Whether the engine has a form of its own for the shape, and a batch fits."""
        return isinstance(self._engine, Fixable) and all(
            size <= limit
            for value in arrays.values()
            for size, limit in zip(value.shape, self._limits(value), strict=True)
        )

    def logits(self, arrays: Arrays) -> NDArray[np.float32]:
        """Logits of a batch that fits.

        Raises:
            ModelError: the engine refuses the shape.
        """
        rows = len(next(iter(arrays.values())))
        padded = self._padded(arrays)
        if self._made is None:
            self._made = fixed(self._engine, padded)
        return self._made.logits(padded)[:rows]

    def _padded(self, arrays: Arrays) -> Mapping[str, NDArray[np.generic]]:
        """Padding behind: no attention, and examples that nobody asks for."""
        return {
            name: np.pad(
                value,
                [
                    (0, limit - size)
                    for size, limit in zip(value.shape, self._limits(value), strict=True)
                ],
                constant_values=self._pad_id if name == "input_ids" else 0,
            )
            for name, value in arrays.items()
        }

    def _limits(self, value: NDArray[np.generic]) -> tuple[int, ...]:
        return self._shape if value.ndim == 2 else (self._shape[0], *value.shape[1:])
