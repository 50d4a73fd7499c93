"""What is quantized and how it is called: any module, and batches as callers have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hfcompress.errors import CalibrationError, ModelError, first_line
from hfcompress.inference import call_model, logits_in, without_labels
from hfcompress.quantization.engine import TEXT_INPUTS, Array, Arrays
from hfcompress.tasks.loaders import Loader, named_batches


class HasBatches(Protocol):
    """A calibration set, such as `hfcompress.Calibration`."""

    @property
    def batches(self) -> Sequence[Mapping[str, Tensor]]:
        """Return dicts of tensors, as the model is called with."""
        ...


Batches: TypeAlias = "HasBatches | Loader"
"""Calibration data."""


class PlainModel(nn.Module):
    """Calls any module by input names and puts its output into ``logits``, as transformers does.

    It has the module's own children, parameters and names. Batches may have any size; all other
    sizes are those of the example, but for the length of texts.

    Args:
        module: takes named tensors, or one tensor; gives logits [batch, outputs].
        example: a batch.
    """

    def __init__(self, module: nn.Module, example: Arrays) -> None:
        self.__dict__["inner"] = module  # no child: its children are this module's
        training = module.training
        super().__init__()
        self.training = training
        for name in ("_modules", "_parameters", "_buffers"):
            self.__dict__[name] = module.__dict__[name]
        self.example = {name: array[:_EXAMPLES] for name, array in example.items()}

    def __reduce__(self) -> tuple[object, ...]:
        return plain_model, (self.__dict__["inner"], self.example)

    @property
    def training(self) -> bool:
        """Whether the module is in training mode."""
        return bool(self.__dict__["inner"].training)

    @training.setter
    def training(self, value: bool) -> None:
        self.__dict__["inner"].training = value

    def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
        """Return the module's logits."""
        return SequenceClassifierOutput(
            logits=logits_in(call_model(self.__dict__["inner"], inputs))
        )

    def inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        """Return a batch of the example's rows, repeated; texts of ``length`` tokens."""
        found = {}
        for name, array in self.example.items():
            rows = np.resize(np.arange(len(array)), batch)
            taken = np.asarray(array)[rows]
            if name in TEXT_INPUTS:
                taken = taken[:, np.resize(np.arange(taken.shape[1]), length)]
            found[name] = torch.from_numpy(np.ascontiguousarray(taken))
        return found


_EXAMPLES = 16
Classifier: TypeAlias = PreTrainedModel | PlainModel


def plain_model(module: nn.Module, example: Arrays) -> PlainModel:
    """Return a `PlainModel` whose class has the name of the module's, for reports and messages."""
    kind = type(type(module).__name__, (PlainModel,), {"__module__": PlainModel.__module__})
    made: PlainModel = kind(module, example)
    return made


def as_classifier(model: nn.Module, batches: Sequence[Arrays]) -> Classifier:
    """Return a transformers model as it is, and any other module as a `PlainModel`.

    Args:
        model: fp32.
        batches: the first one is the example of a plain module.

    Raises:
        CalibrationError: a plain module without a batch, or one that it fails on.
        ModelError: it does not return logits [batch, outputs].
    """
    if isinstance(model, (PreTrainedModel, PlainModel)):
        return model
    name = type(model).__name__
    if not batches:
        raise CalibrationError(
            f"{name} is not a transformers model, so its inputs are unknown: give an example "
            f"batch, such as calibration=[{{'pixel_values': images}}]"
        )
    made = plain_model(model, batches[0])
    rows = len(next(iter(batches[0].values())))
    training = model.training
    try:
        with torch.inference_mode():
            logits = made.train(False)(**made.inputs(min(rows, 2), _length(batches[0]))).logits
    except ModelError:
        raise
    except Exception as error:  # whatever a forward raises
        shapes = ", ".join(f"{key} {list(array.shape)}" for key, array in batches[0].items())
        raise CalibrationError(
            f"{name} fails on the example batch ({shapes}): {first_line(error)}; name the batch's "
            f"tensors as forward does"
        ) from error
    finally:
        made.train(training)
    if logits.ndim != 2 or len(logits) != min(rows, 2):
        raise ModelError(
            f"{name} returns logits of the shape {list(logits.shape)} for {min(rows, 2)} rows; it "
            f"must return [rows, outputs]"
        )
    return made


def _length(batch: Arrays) -> int:
    return next((array.shape[1] for name, array in batch.items() if name in TEXT_INPUTS), 0)


# --- batches -----------------------------------------------------------------------------------


def as_batches(calibration: Batches | None, model: nn.Module) -> list[Arrays]:
    """Return calibration data as arrays by input name, labels left out.

    Args:
        calibration: a `HasBatches`, or any loader that `hfcompress.tasks.loaders` reads.
        model: the names of its inputs are given to unnamed tensors.

    Raises:
        CalibrationError: something else, or a batch without rows.
    """
    if calibration is None:
        return []
    given = getattr(calibration, "batches", calibration)
    if isinstance(given, Sequence) and not given:
        return []
    named = named_batches(given, model, CalibrationError)
    return [
        {name: _array(value) for name, value in without_labels(batch).items()} for batch in named
    ]


def _array(value: Tensor) -> Array:
    plain: Array = (value.float() if value.is_floating_point() else value).detach().cpu().numpy()
    return plain
