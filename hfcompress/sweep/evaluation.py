"""What a function of the caller's, or labelled batches, say of a model: a value, and how sure that
is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from hfcompress.config import nearest
from hfcompress.errors import ConfigError, DataError
from hfcompress.inference import dense_logits, without_labels
from hfcompress.measure.bootstrap import compare_units
from hfcompress.measure.comparison import compare_scores
from hfcompress.measure.evaluation import compare, metric_names
from hfcompress.quantization.model import QuantizedModel
from hfcompress.tasks.loaders import named_batches
from hfcompress.training.loops import as_number, check_labels, labelled
from hfcompress.utils import Fields

Array = NDArray[Any]


@dataclass(frozen=True)
class Answers:
    """What a model was measured to be.

    Attributes:
        value: the metric, higher is better.
        arrays: kept with the row: ``scores`` [rows] or ``logits`` [rows, classes]; empty of a
            single number.
    """

    value: float
    arrays: dict[str, Array] = field(default_factory=dict)


class Evaluation(Protocol):
    """Measures models."""

    @property
    def key(self) -> object:
        """Plain data that tell this evaluation from others."""
        ...

    @property
    def references(self) -> tuple[Array, str] | None:
        """What logits are compared with, and a hash of the rows; None where there are none."""
        ...

    def answers(self, model: nn.Module | QuantizedModel) -> Answers:
        """Measure a model.

        Raises:
            ConfigError: a function that returns something else than numbers.
        """
        ...

    def quality(self, own: Answers, dense: Answers) -> Fields:
        """Return the fields of a row: the metric, its interval, the comparison with the dense."""
        ...


Evaluate = Callable[[Any], object]
"""``evaluate(model)``: a number, or one for each example, whose mean counts; more is better."""


def as_evaluation(evaluate: object, metric: str, model: nn.Module) -> Evaluation:
    """Return how models are measured.

    Args:
        evaluate: a function of the model, or labelled batches as `hfcompress.tasks.loaders` reads.
        metric: its name; of labelled batches one of `metric_names`.
        model: names the members of batches.

    Raises:
        ConfigError: neither, or an unknown metric.
        DataError: batches without labels, or labels that are not class numbers.
    """
    if callable(evaluate) and not isinstance(evaluate, nn.Module):
        return ByFunction(evaluate, metric)
    if evaluate is None or isinstance(evaluate, (nn.Module, str)):
        raise ConfigError(
            f"evaluate is {type(evaluate).__name__}; give a function of the model that returns a "
            f"number, or labelled batches"
        )
    if metric not in metric_names():
        raise ConfigError(
            f"{metric!r} is not a metric of classes{nearest(metric, list(metric_names()))}"
        )
    return ByBatches(list(labelled(named_batches(evaluate, model), model)), metric)


# --- a function --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ByFunction:
    """A function of the model."""

    function: Evaluate
    metric: str

    @property
    def key(self) -> object:
        """The function's name and code."""
        return [function_key(self.function), self.metric]

    @property
    def references(self) -> None:
        """None: the function knows what is right."""
        return None

    def answers(self, model: nn.Module | QuantizedModel) -> Answers:
        """What the function returns.

        Raises:
            ConfigError: neither a number nor one for each example, or one that is not finite.
        """
        found = self.function(model)
        scores = _scores(found)
        if scores is None:
            return Answers(as_number(found, "evaluate"))
        if not np.isfinite(scores).all():
            raise ConfigError("evaluate returned numbers that are not finite")
        return Answers(float(scores.mean()), {"scores": scores.astype(np.float32)})

    def quality(self, own: Answers, dense: Answers) -> Fields:
        """The fields of a row; a single number has no interval."""
        found: Fields = {
            "metric": self.metric, "value": own.value, "low": None, "high": None,
            "standard_error": None, "n": None, "agreement": None, "mcnemar_p": None,
            "drop": dense.value - own.value,
        }  # fmt: skip
        scores, theirs = own.arrays.get("scores"), dense.arrays.get("scores")
        if scores is None:
            return found
        found |= _interval(scores)
        if theirs is None or len(theirs) != len(scores):
            return found
        apart = compare_scores(theirs, scores)
        if apart.test == "McNemar":
            return {**found, "mcnemar_p": apart.p}
        return {**found, "drop_low": apart.low, "drop_high": apart.high, "paired_p": apart.p}


def _scores(found: object) -> Array | None:
    """A number for each example; None where it is not that."""
    if isinstance(found, Tensor):
        found = found.detach().cpu().numpy()
    if isinstance(found, (list, tuple)):
        try:
            found = np.asarray(found)
        except ValueError:
            return None
    if not isinstance(found, np.ndarray) or found.ndim != 1 or len(found) < 2:
        return None
    return found.astype(np.float64) if found.dtype.kind in "biuf" else None


def _interval(scores: Array) -> Fields:
    n, value = len(scores), float(scores.mean())
    if np.isin(scores, (0, 1)).all():
        wilson = binomtest(int(scores.sum()), n).proportion_ci(0.95, method="wilson")
        error = float(np.sqrt(value * (1 - value) / n))
        return {
            "low": float(wilson.low), "high": float(wilson.high), "standard_error": error, "n": n,
        }  # fmt: skip
    whole = compare_units("scores", lambda units: float(scores[units].mean()), n)
    names = ("low", "high", "standard_error", "n")
    return {name: getattr(whole, name) for name in names}


# --- labelled batches --------------------------------------------------------------------------


@dataclass(frozen=True)
class ByBatches:
    """Labelled batches, by the names of the model's inputs."""

    batches: list[dict[str, Tensor]]
    metric: str

    @property
    def key(self) -> object:
        """A digest of the batches."""
        return [batches_key(self.batches), self.metric]

    @property
    def references(self) -> tuple[Array, str]:
        """The labels that count, and a digest of the rows."""
        return self._labels, batches_key(self.batches)

    @property
    def _labels(self) -> Array:
        labels = torch.cat([batch["labels"].flatten() for batch in self.batches]).cpu().numpy()
        if labels.dtype.kind not in "biu":
            raise DataError(
                "labels are not class numbers; write labels.long(), or give a function that "
                "measures the model"
            )
        return np.asarray(labels[labels != -100], np.int64)

    def answers(self, model: nn.Module | QuantizedModel) -> Answers:
        """The metric of the model's logits for all rows, or tokens, that have a label.

        Raises:
            DataError: labels that do not fit the logits.
        """
        found, wanted = [], self._labels
        for batch in self.batches:
            logits, labels = _logits(model, batch), batch["labels"].cpu()
            check_labels(torch.from_numpy(logits), labels, "classification")
            counted = (labels != -100).numpy().flatten()
            found.append(logits.reshape(-1, logits.shape[-1])[counted])
        together = np.concatenate(found)
        value = compare(self.metric, together, wanted).value
        return Answers(value, {"logits": together})

    def quality(self, own: Answers, dense: Answers) -> Fields:
        """The fields of a row, as a recipe's."""
        found = compare(self.metric, own.arrays["logits"], self._labels, dense.arrays["logits"])
        return found.to_dict()


def _logits(model: nn.Module | QuantizedModel, batch: Mapping[str, Tensor]) -> Array:
    inputs = without_labels(batch)
    if isinstance(model, QuantizedModel):
        return model.logits(inputs)
    return dense_logits(model, inputs)


# --- keys --------------------------------------------------------------------------------------


def batches_key(batches: list[dict[str, Tensor]]) -> str:
    """A digest of batches."""
    return _digest(pair for batch in batches for pair in sorted(batch.items()))


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


_PLAIN = (bool, int, float, str, bytes, tuple, type(None))


def function_key(function: object) -> str:
    """A function's name, and digests of its own code, its defaults, what a partial was given and
    the data that it reads by name: tensors, arrays, and loaders of them.

    What it calls is not looked into, nor other objects that it encloses: a counter would change it.
    """
    inner = getattr(function, "func", function)  # functools.partial
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    passed: list[tuple[str, object]] = [("", value) for value in getattr(function, "args", ())]
    passed += [(f"{key}=", value) for key, value in getattr(function, "keywords", {}).items()]
    given = [f"{key}{value!r}" for key, value in passed if _tensors(value) is None]
    defaults = getattr(inner, "__defaults__", None) or ()
    given += [repr(value) for value in defaults if isinstance(value, _PLAIN)]
    read = [*passed, *_read_by(inner)]
    data = [(key, tensor) for key, value in read for tensor in _tensors(value) or ()]
    given += [_digest(data)] if data else []
    if not isinstance(code, CodeType):
        return f"{name} {given}"
    own = hashlib.sha256(_code(code)).hexdigest()[:12]
    return f"{name} {own} {' '.join(given)}".strip()


def _read_by(function: object) -> Iterator[tuple[str, object]]:
    """What a function encloses, and the globals that it names."""
    if not isinstance(function, FunctionType):
        return
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # a cell that is filled later
            yield name, cell.cell_contents
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _names(code: CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


_DEPTH = 4
"""Of lists within lists, one of which may hold itself."""


def _tensors(value: object, depth: int = _DEPTH) -> list[Tensor] | None:
    """The tensors of data: of a tensor, an array, a dataset or loader of tensors, or a list, tuple
    or dict of those; None of anything else."""
    if isinstance(value, DataLoader):
        value = value.dataset
    if isinstance(value, Tensor):
        return [value] if value.layout == torch.strided and value.device.type != "meta" else None
    if isinstance(value, np.ndarray):
        flat = np.ascontiguousarray(value).reshape(-1)
        return None if value.dtype.hasobject else [torch.from_numpy(flat.view(np.uint8).copy())]
    if isinstance(value, Subset):
        inner = _tensors(value.dataset, depth)
        return None if inner is None else [*inner, torch.tensor(list(value.indices))]
    if isinstance(value, TensorDataset):
        return list(value.tensors)
    if isinstance(value, (list, tuple, dict)) and value and depth:
        found: list[Tensor] = []
        for part in value.values() if isinstance(value, dict) else value:
            inner = _tensors(part, depth - 1)
            if inner is None:
                return None
            found += inner
        return found
    return None


def _code(code: CodeType) -> bytes:
    """A code object without its file and line numbers."""
    parts = [code.co_code, repr(code.co_names).encode()]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            parts.append(_code(constant))
        elif isinstance(constant, frozenset):
            parts.append(repr(sorted(map(repr, constant))).encode())
        else:
            parts.append(repr(constant).encode())
    return b"\0".join(parts)
