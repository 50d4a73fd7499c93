"""What the engines of phones share: one row at a time, static shapes, int32 tokens."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hfcompress.errors import DataError, ModelError
from hfcompress.inference import dense_logits, logits_in
from hfcompress.measure.macs import evaluation_mode, is_weighted
from hfcompress.quantization.engine import (
    TEXT_INPUTS,
    Array,
    Arrays,
    FileEngine,
    select_inputs,
    without_padding,
)
from hfcompress.quantization.images import image_shape
from hfcompress.quantization.inputs import Classifier
from hfcompress.quantization.onnx_export import TOLERANCE, example_inputs, input_names

# Tokens that a file reads where no example says more.
_LENGTH = 128
_CHECKED_ROWS = 4


class RowEngine(FileEngine):
    """Base of engines whose file reads one row of one shape.

    Attributes:
        inputs: names of what it reads, in the file's order.
        shapes: of each input, rows included (1).
        pad_id: token that shorter texts are filled with.
    """

    name: str
    inputs: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    pad_id: int

    def run_row(self, row: Arrays) -> NDArray[np.float32]:
        """Return the logits of one row, [1, outputs].

        Args:
            row: every input, in the file's shape.
        """
        raise NotImplementedError

    @property
    def length(self) -> int | None:
        """Return the tokens that the file reads; None for other inputs."""
        return next((self.shapes[n][1] for n in self.inputs if n in TEXT_INPUTS), None)

    def logits(self, arrays: Arrays) -> NDArray[np.float32]:
        """Return the logits of one batch, row by row; shorter texts are padded.

        Raises:
            DataError: a row of another shape, or a text that is longer than the file reads.
        """
        given = select_inputs(arrays, self.inputs)
        rows = [self._row(given, place) for place in range(len(next(iter(given.values()))))]
        logits = np.concatenate([self.run_row(row) for row in rows])
        tokens = next((array.shape[1] for name, array in given.items() if name in TEXT_INPUTS), 0)
        return without_padding(logits, self.length or 0, tokens)

    def _row(self, given: Mapping[str, Array], place: int) -> dict[str, Array]:
        return {name: self._fit(name, array[place : place + 1]) for name, array in given.items()}

    def _fit(self, name: str, row: Array) -> Array:
        wanted = self.shapes[name]
        if name in TEXT_INPUTS and row.ndim == 2 and row.shape[1] <= wanted[1]:
            fill = self.pad_id if name == "input_ids" else 0
            row = np.pad(row, ((0, 0), (0, wanted[1] - row.shape[1])), constant_values=fill)
        if row.shape != wanted:
            raise DataError(
                f"the file reads {name} of shape {list(wanted[1:])} and a row has "
                f"{list(row.shape[1:])}; quantize with an example of that size"
            )
        return row.astype(np.float32 if row.dtype.kind == "f" else np.int32)


class FixedRow(nn.Module):
    """Calls a classifier with positional inputs, tokens as int32, and gives its logits alone."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the logits, [1, outputs]."""
        given = {
            name: value if value.is_floating_point() else value.long()
            for name, value in zip(self.names, inputs, strict=True)
        }
        return logits_in(self.model(**given))


def static_rows(model: Classifier, batches: Sequence[Arrays], rows: int) -> list[Arrays]:
    """Return rows of one shape: of the batches, or random ones where there are none.

    Args:
        model: names the inputs, and limits the length of texts.
        batches: calibration inputs; texts are padded to the longest of them.
        rows: at most so many.
    """
    names = input_names(model)
    texts = [array.shape[1] for b in batches for n, array in b.items() if n in TEXT_INPUTS]
    length = max(texts, default=_LENGTH)
    if not batches:
        example = example_inputs(model, rows, length, image_shape(model))
        batches = [{name: tensor.numpy() for name, tensor in example.items()}]
        # A model may have fewer positions.
        length = next((a.shape[1] for n, a in example.items() if n in TEXT_INPUTS), length)
    shapes = {name: (1, *np.shape(batches[0][name])[1:]) for name in names if name in batches[0]}
    for name in TEXT_INPUTS:
        if name in names:
            shapes[name] = (1, length)
    shaper = _Shaper(names, shapes, pad_id_of(model))
    found: list[Arrays] = []
    for batch in batches:
        given = select_inputs(batch, names)
        for place in range(len(next(iter(given.values())))):
            if len(found) < rows:
                found.append(shaper._row(given, place))
    return found


class _Shaper(RowEngine):
    """Brings rows into shape, without a file."""

    def __init__(
        self, inputs: tuple[str, ...], shapes: dict[str, tuple[int, ...]], pad_id: int
    ) -> None:
        self.inputs, self.shapes, self.pad_id = inputs, shapes, pad_id


def pad_id_of(model: nn.Module) -> int:
    """Return the token that a model's config pads with; 0 where it does not say."""
    return int(getattr(getattr(model, "config", None), "pad_token_id", None) or 0)


def as_tensors(row: Arrays, names: Sequence[str]) -> tuple[Tensor, ...]:
    """Return one row's inputs in the file's order."""
    return tuple(torch.from_numpy(np.ascontiguousarray(row[name])) for name in names)


def check_rows(model: Classifier, engine: RowEngine, rows: Sequence[Arrays]) -> None:
    """Refuse an fp32 file whose logits are not torch's.

    Raises:
        ModelError: more than `TOLERANCE` apart, or NaN.
    """
    for row in rows[:_CHECKED_ROWS]:
        long = {n: a if a.dtype.kind == "f" else a.astype(np.int64) for n, a in row.items()}
        with evaluation_mode(model):
            expected = dense_logits(model, long)
        difference = np.abs(engine.run_row(row) - expected).max() / max(1, np.abs(expected).max())
        if not difference <= TOLERANCE:
            raise ModelError(
                f"{type(model).__name__} in {engine.name} gives logits that differ from torch's by "
                f"{difference:.2g}, more than {TOLERANCE:g}; use backend: onnxruntime"
            )


def modules_of_sizes(model: nn.Module, sizes: Iterable[int], excluded: Collection[str]) -> set[str]:
    """Return the modules whose weight is an integer in a file that names no modules.

    Args:
        model: that was quantized.
        sizes: number of elements of each integer tensor in the file.
        excluded: modules that stay in floating point.
    """
    left = Counter(sizes)
    found = set()
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        known = is_weighted(module) or isinstance(module, nn.Embedding)
        if weight is None or not known or name in excluded or not left[weight.numel()]:
            continue
        left[weight.numel()] -= 1
        found.add(name)
    return found


def new_folder() -> Path:
    """Return a temporary folder for a file; who makes it deletes it."""
    return Path(tempfile.mkdtemp(prefix="hfcompress-"))
