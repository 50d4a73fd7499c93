"""Rows to choose on, and the one look at the measured rows: the winner is not flattered."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hfcompress.data.load import fingerprint
from hfcompress.errors import ConfigError, DataError
from hfcompress.measure.certificate import Certificate, certify_drop
from hfcompress.measure.evaluation import Quality
from hfcompress.steps.context import ModelState
from hfcompress.sweep.experiment import Experiment
from hfcompress.sweep.trial import Runner
from hfcompress.utils import Fields

# Share of the training side that candidates are chosen on, where data.choose does not say it.
CHOOSE = 0.1


@dataclass(frozen=True)
class Measured:
    """What the chosen model does on rows that nothing was trained, calibrated or chosen on.

    Attributes:
        quality: the metric with its interval, and the comparison with the dense model.
        certificate: how much it loses at most; None where no confidence was asked for.
    """

    quality: Quality
    certificate: Certificate | None

    def holds(self, max_drop: float) -> bool:
        """Whether the loss is within ``max_drop`` points, and surely so where that was asked."""
        if self.certificate is not None:
            return self.certificate.certain
        return round(100 * (self.quality.drop or 0), 6) <= max_drop

    def to_dict(self) -> Fields:
        """The fields as plain data."""
        sure = None if self.certificate is None else self.certificate.to_dict()
        return {"quality": self.quality.to_dict(), "certificate": sure}

    @classmethod
    def from_dict(cls, data: Fields) -> Measured:
        """Read what `to_dict` gave."""
        found = data["certificate"]
        fields = {} if found is None else dict(found)
        for derived in ("certain", "sentence"):
            fields.pop(derived, None)
        return cls(Quality(**data["quality"]), None if found is None else Certificate(**fields))


def for_choosing(experiment: Experiment) -> Experiment:
    """Return the experiment with the rows to choose on in the place of the measured ones.

    Raises:
        DataError: the experiment's data say no ``choose``.
    """
    examples = experiment.examples
    if examples.choose is None:
        raise DataError("there are no rows to choose on; write data.choose: 0.1")
    experiment.progress.note(
        f"candidates are chosen on {len(examples.choose):,} rows of the training side, which "
        f"nothing is trained on; the {len(examples.eval):,} measured rows are for the chosen one"
    )
    divided = replace(examples, eval=examples.choose, choose=None)
    return replace(
        experiment,
        examples=divided,
        first=experiment.first.of(divided),
        eval_hash=fingerprint(divided.eval, divided.columns),
    )


def measure_once(
    experiment: Experiment,
    state: ModelState,
    max_drop: float,
    confidence: float | None,
) -> Measured:
    """Measure a chosen model on the measured rows.

    Args:
        experiment: of the measured rows.
        state: the model with its processor.
        max_drop: points (hundredths) that may be lost.
        confidence: of the bound of the loss; None for none.
    """
    experiment.progress.stage("measuring the chosen model")
    runner, asked = Runner(experiment, []), experiment.references
    _, logits = runner.predict(state)
    dense_state = ModelState(experiment.loaded.model, experiment.loaded.processor, state.task)
    _, dense = runner.predict(dense_state)
    quality = state.task.quality(experiment.metric, logits, asked, dense)
    if confidence is None:
        return Measured(quality, None)
    before, after = (state.task.right(answers, asked) for answers in (dense, logits))
    if before is None or after is None:
        raise ConfigError(
            f"confidence is a bound of right and wrong answers, and those of {state.task.name} "
            f"are right by degrees; leave confidence out"
        )
    return Measured(quality, certify_drop(before, after, max_drop / 100, confidence))
