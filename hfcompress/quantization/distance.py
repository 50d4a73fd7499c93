"""The distance of a quantized model from fp32, measured in its engine before it is returned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hfcompress.errors import ConfigError, ModelError, TargetError
from hfcompress.inference import Logits, dense_logits
from hfcompress.quantization.answers import distributions, output_values
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.engine import Arrays, Engine
from hfcompress.quantization.images import image_shape
from hfcompress.quantization.inputs import Classifier
from hfcompress.quantization.manifest import DistanceReport
from hfcompress.quantization.onnx_export import example_inputs
from hfcompress.quantization.qat import FakeQuantization
from hfcompress.tasks.outputs import OutputKind
from hfcompress.training.outputs import infer_task

WARN, LOST = 0.25, 0.8
"""Limits of `Distance.error`. Beyond the first a note says so. At the second the error is nearly as
large as the differences between the rows, and the model is refused unless its classes agree."""
_AGREEMENT = 0.5
# Rows that are compared; rows that each module is quantized alone for.
_ROWS, _ROWS_ALONE = 64, 16
_EXAMPLE = (16, 24)
_NAMED = 3


@dataclass(frozen=True)
class Distance:
    """The distance of a quantized model's logits from the fp32 model's.

    Attributes:
        error: root mean square error by the standard deviation of the fp32 logits over the rows.
        changed: share of the rows (of tokens, where each is answered for) whose largest logit is
            another; 0 for a single logit.
        agreement: Cohen's kappa of the largest logits: 1 if all agree, 0 by chance; 0 for a single
            logit.
        rows: number of rows.
        calibration: whether they are calibration rows; else they are random.
    """

    error: float
    changed: float
    agreement: float
    rows: int
    calibration: bool

    @property
    def lost(self) -> bool:
        """Return whether the quantized logits say nothing about the rows."""
        return not np.isfinite(self.error) or (self.error >= LOST and self.agreement < _AGREEMENT)

    @property
    def sentence(self) -> str:
        """Return the distance in words."""
        return (
            f"the logits of {self.rows} {'calibration' if self.calibration else 'random'} rows "
            f"differ from fp32 by {self.error:.0%} of their spread, and the largest of them in "
            f"{self.changed:.0%} of the rows"
        )

    def to_dict(self) -> DistanceReport:
        """Return the numbers as JSON data."""
        return {
            "error": self.error,
            "changed": self.changed,
            "agreement": self.agreement,
            "rows": self.rows,
            "calibration": self.calibration,
        }


def compared_rows(model: Classifier, batches: Sequence[Arrays]) -> list[Arrays]:
    """Return the first calibration batches, or a batch of random inputs without them."""
    chosen: list[Arrays] = []
    count = 0
    for batch in batches:
        if count >= _ROWS:
            break
        chosen.append(batch)
        count += len(next(iter(batch.values())))
    if chosen:
        return chosen
    example = example_inputs(model, *_EXAMPLE, image_shape(model))
    return [{name: tensor.numpy() for name, tensor in example.items()}]


def measure_distance(
    engine: Engine,
    rows: Sequence[Arrays],
    dense: Sequence[Logits],
    calibration: bool,
    kind: OutputKind = "classification",
) -> Distance:
    """Return the distance of an engine's logits from the fp32 model's.

    Args:
        engine: with the quantized model.
        rows: from `compared_rows`.
        dense: the fp32 model's logits for them, by batch.
        calibration: whether they are calibration rows.
        kind: what the logits mean; padding does not count.
    """
    found = [engine.logits(batch) for batch in rows]
    values, exact = (output_values(parts, rows, kind) for parts in (found, dense))
    ours, theirs = (distributions(parts, rows, kind).argmax(1) for parts in (found, dense))
    changed = float(np.mean(ours != theirs))
    chance = sum(
        float(np.mean(ours == label) * np.mean(theirs == label)) for label in np.unique(theirs)
    )
    agreement = 1 - changed if chance == 1 else (1 - changed - chance) / (1 - chance)
    if exact.shape[1] == 1:
        agreement = 0.0
    count = sum(len(part) for part in dense)
    return Distance(relative_error(values, exact), changed, agreement, count, calibration)


def relative_error(found: Logits, dense: Logits) -> float:
    """Return the root mean square error by the standard deviation over the rows; inf for NaN."""
    if not np.isfinite(found).all():
        return float("inf")
    exact = dense.astype(np.float64)
    spread = np.sqrt(exact.var(axis=0).mean())
    # Constant logits have no spread; a thousandth of their size is still a small error.
    floor = 1e-3 * np.sqrt(np.square(exact).mean()) + 1e-6
    return float(np.sqrt(np.square(found - exact).mean()) / max(spread, floor))


def check_distance(
    model: Classifier,
    config: QuantizationConfig,
    distance: Distance,
    rows: Sequence[Arrays],
    accepted: bool = False,
) -> tuple[str, ...]:
    """Return a warning for a model that is far from fp32.

    Args:
        model: fp32, in eval mode.
        config: how it was quantized.
        distance: measured in its engine.
        rows: that it was measured on.
        accepted: the loss is within a limit that the caller stated.

    Raises:
        ModelError: the quantized logits say nothing about the rows.
    """
    if distance.error <= WARN or (accepted and np.isfinite(distance.error)):
        return ()
    names = ", ".join(lossy_modules(model, config, rows))
    most = f"; most is lost in {names}" if names else ""
    if not distance.lost:
        return (
            f"{distance.sentence} (more than {WARN:.0%} is a warning){most}: keep them in fp32 "
            f"(exclude), or measure before you use it",
        )
    raise ModelError(
        f"{type(model).__name__} loses its answers with backend {config.backend} in mode "
        f"{config.resolved_mode}: {distance.sentence}{most}; keep what loses most in fp32 "
        f"(exclude), or choose another backend or mode"
    )


def lossy_modules(
    model: Classifier, config: QuantizationConfig, rows: Sequence[Arrays]
) -> list[str]:
    """Return the modules that lose most if each is quantized alone, simulated in torch.

    Args:
        model: fp32, in eval mode.
        config: how it is quantized.
        rows: inputs; some of them are used.
    """
    try:
        fake = FakeQuantization(model, config)
    except (ConfigError, TargetError):
        return []
    some = [{name: array[:_ROWS_ALONE] for name, array in rows[0].items()}]
    kind = infer_task(model)

    def logits() -> Logits:
        return output_values([dense_logits(model, some[0])], some, kind)

    dense = logits()
    fake.start()
    try:
        if fake.arithmetic.activations == "static":
            fake.observe(logits)
        errors = {}
        for name in fake.modules:
            fake.active = {name}
            errors[name] = relative_error(logits(), dense)
    finally:
        fake.stop()
    ranked = sorted(errors, key=lambda name: -errors[name])
    return [name for name in ranked[:_NAMED] if errors[name] > 0]
