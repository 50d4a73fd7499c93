"""``check``: what each verb would do to a model, and whether the result reloads as it was."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfcompress.calibration.batches import Calibration
from hfcompress.config import nearest
from hfcompress.distillation.student import make_student
from hfcompress.errors import ConfigError, HfcompressError, MissingExtraError
from hfcompress.inference import call_model, logits_in
from hfcompress.measure.size import count_parameters
from hfcompress.models.architectures import blocks, compressible_modules, default_targets
from hfcompress.models.loading import ModelConfig, load_model, saved_class
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.prune import prune
from hfcompress.quantization.config import MODES, NOT_MEASURED, RUN_HERE, QuantizationConfig
from hfcompress.quantization.load import load
from hfcompress.quantization.onnx_export import example_inputs
from hfcompress.quantization.quantize import quantize
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.shrink import shrink
from hfcompress.storage.temporary import temporary_root
from hfcompress.tasks.registry import task_of_checkpoint
from hfcompress.utils import Fields, Progress, check_pretrained

Status = Literal["works", "refused", "missing", "fails"]
# Reloaded weights are the same bits, so that logits differ by the order of sums at most.
_TOLERANCE = 1e-4
_ROWS, _LENGTH = 8, 32


@dataclass(frozen=True)
class VerbCheck:
    """A dry run of one verb on a copy of the model.

    Attributes:
        verb: ``prune``, ``shrink``, ``student``, or ``quantize`` and the engine.
        status: ``works``; ``refused``, with a reason; ``missing``, a package that is not
            installed; ``fails``, an error, or other logits after reloading.
        touched: what it changed.
        left: what it left alone, and why.
        difference: largest difference of a logit after saving and reloading; None where it did
            not come to that.
        reason: why it was refused, or how it failed.
    """

    verb: str
    status: Status
    touched: str = ""
    left: str = ""
    difference: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class CheckReport:
    """What each verb would do to a model.

    Attributes:
        model: its name.
        architecture: its class, ``model_type``, layers, heads and width, as far as known.
        parameters: how many it has.
        verbs: one dry run each.
    """

    model: str
    architecture: str
    parameters: int
    verbs: tuple[VerbCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether no verb fails; one that refuses, or lacks a package, does not fail."""
        return not any(verb.status == "fails" for verb in self.verbs)

    def to_dict(self) -> Fields:
        """The report as plain data."""
        return {**asdict(self), "passed": self.passed}


def check(
    model: str | Path | PreTrainedModel,
    progress: Progress | None = None,
    engines: Sequence[str] = RUN_HERE,
) -> CheckReport:
    """Try every verb on copies of a classifier, with random inputs::

        report = check("my-model")
        report.passed, [verb.reason for verb in report.verbs if verb.status == "refused"]

    Nothing is trained and nothing is kept; accuracy is not looked at. Each result is saved,
    loaded and compared with what was saved.

    Args:
        model: hub name, folder, or the model itself, which does not change.
        progress: receives stages.
        engines: those that ``quantize`` is tried with.

    Raises:
        ConfigError: an unknown engine.
        SourceError: nothing there.
        ModelError: a checkpoint of another task.
    """
    progress = progress or Progress()
    for engine in engines:
        if engine not in MODES:
            raise ConfigError(f"unknown engine {engine!r}{nearest(engine, MODES)}")
        if engine not in RUN_HERE:
            raise ConfigError(f"engine {engine}: {NOT_MEASURED}")
    check_pretrained(model, "check", "call prune, shrink or quantize on a copy of the module")
    if isinstance(model, PreTrainedModel):
        name, work = type(model).__name__, model
    else:
        name = str(model)
        progress.stage("loading the model")
        task = task_of_checkpoint(name)
        work = load_model(ModelConfig(path=name), task, processor=False).model
    training = work.training
    work.train(False)
    try:
        verbs = tuple(_dry_runs(work, engines, progress))
    finally:
        work.train(training)
    kind = f"{type(work).__name__}, {getattr(work.config, 'model_type', 'unknown')}"
    kind = ", ".join([kind, *_sizes(work)])
    return CheckReport(name, kind, count_parameters(work), verbs)


def _sizes(model: PreTrainedModel) -> Iterator[str]:
    """Layers, heads and width, where optimum knows how the family's config calls them."""
    from optimum.utils import NormalizedConfigManager

    try:
        kind = NormalizedConfigManager.get_normalized_config_class(model.config.model_type)
    except KeyError:
        return
    sizes = kind(model.config)
    for name, text in (
        ("num_layers", "layers"), ("num_attention_heads", "heads"), ("hidden_size", "wide"),
    ):  # fmt: skip
        if sizes.has_attribute(name):
            yield f"{getattr(sizes, name)} {text}"


def _dry_runs(
    model: PreTrainedModel, engines: Sequence[str], progress: Progress
) -> Iterator[VerbCheck]:
    batch = example_inputs(model, _ROWS, _LENGTH)
    runs: dict[str, Callable[[], VerbCheck]] = {
        "prune": lambda: _prune(model, batch),
        "shrink": lambda: _shrink(model, batch),
        "student": lambda: _student(model, batch),
    }
    for backend in engines:
        runs[f"quantize {backend}"] = lambda backend=backend: _quantize(model, batch, backend)  # type: ignore[misc]
    for verb, run in runs.items():
        progress.stage(f"trying {verb}")
        yield _outcome(verb, run)


def _outcome(verb: str, run: Callable[[], VerbCheck]) -> VerbCheck:
    try:
        return run()
    except MissingExtraError as error:
        return VerbCheck(verb, "missing", reason=str(error))
    except HfcompressError as error:
        return VerbCheck(verb, "refused", reason=str(error))
    except Exception as error:  # whatever it is, the report says it
        return VerbCheck(verb, "fails", reason=f"{type(error).__name__}: {error}".splitlines()[0])


def _prune(model: PreTrainedModel, batch: dict[str, Tensor]) -> VerbCheck:
    work = copy.deepcopy(model)
    report = prune(work, PruningConfig(sparsity=0.5))
    others = compressible_modules(work).keys() - default_targets(work).keys()
    touched = f"{len(report.layers)} matrices, {report.weights:,} weights"
    left = "; ".join(
        [*([f"by default: {', '.join(sorted(others))}"] if others else []), *report.notes]
    )
    return _reloaded("prune", work, batch, touched, left)


def _shrink(model: PreTrainedModel, batch: dict[str, Tensor]) -> VerbCheck:
    work = copy.deepcopy(model)
    labels = {"labels": _logits(work, batch).argmax(-1)}
    report = shrink(work, ShrinkConfig(macs=0.7), Calibration([{**batch, **labels}]))
    touched = f"{1 - report.macs.share:.0%} of the layers' multiply-accumulates"
    return _reloaded("shrink", work, batch, touched, "; ".join(report.notes))


def _student(model: PreTrainedModel, batch: dict[str, Tensor]) -> VerbCheck:
    layers = len(blocks(model))
    student = make_student(model, layers=max(1, layers // 2))
    touched = f"{layers} layers to {max(1, layers // 2)}"
    return _reloaded("student", student, batch, touched, "")


def _reloaded(
    verb: str, model: PreTrainedModel, batch: dict[str, Tensor], touched: str, left: str
) -> VerbCheck:
    """Save a model, load it with plain ``from_pretrained``, and compare the logits."""
    before = _logits(model, batch)
    with tempfile.TemporaryDirectory(dir=temporary_root()) as folder:
        model.save_pretrained(folder)
        again = saved_class(Path(folder), model).from_pretrained(folder, dtype=torch.float32)
        after = _logits(again.train(False), batch)
    return _compared(verb, before, after, touched, left)


def _quantize(model: PreTrainedModel, batch: dict[str, Tensor], backend: str) -> VerbCheck:
    verb = f"quantize {backend}"
    small = quantize(model, QuantizationConfig.from_dict({"backend": backend}), [batch])
    before = torch.from_numpy(small.logits(batch))
    with tempfile.TemporaryDirectory(dir=temporary_root()) as folder:
        small.save(folder)
        arrays = {key: value.numpy() for key, value in batch.items()}
        after = torch.from_numpy(load(folder).logits(arrays))
    done = small.coverage
    touched = f"{done.share_of_bytes:.0%} of the bytes, {small.config.resolved_mode}"
    left = "; ".join([*(f"{count}: {why}" for why, count in done.reasons.items()), *small.notes])
    return _compared(verb, before, after, touched, left)


def _compared(verb: str, before: Tensor, after: Tensor, touched: str, left: str) -> VerbCheck:
    difference = float((before - after).abs().max()) / max(1.0, float(before.abs().max()))
    if difference <= _TOLERANCE:  # False for NaN
        return VerbCheck(verb, "works", touched, left, difference)
    reason = f"after reloading, logits differ by {difference:.2g} of the largest"
    return VerbCheck(verb, "fails", touched, left, difference, reason)


def _logits(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return logits_in(call_model(model, batch)).float().clone()
