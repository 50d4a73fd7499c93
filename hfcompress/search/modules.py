"""``compress_module``: the largest module that is small enough, of any kind and in int8."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from hfcompress.checkpoint.modules import save_module
from hfcompress.errors import ConfigError, HfcompressError
from hfcompress.quantization.model import QuantizedModel
from hfcompress.report.rows import is_percent, metric_text
from hfcompress.report.rows_view import RowsView
from hfcompress.search.target import CompressTarget
from hfcompress.sweep.module_steps import AnyModel, ModuleStep, module_trials
from hfcompress.sweep.modules import prepare_modules, run_modules
from hfcompress.utils import Fields, Progress, Row, size_text

SHARES = (0.8, 0.65, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
"""Shares of the multiply-accumulates that are tried, where int8 alone is too large."""
_SERVED = ("max_size", "max_drop", "backend", "mode", "metric")


@dataclass(frozen=True)
class CompressedModule(RowsView):
    """What a search gave.

    Attributes:
        rows: one for each candidate that was made, in the order of the search.
        found: the row that meets the target; None where none does.
        model: its model; None likewise.
        sentence: the result in one sentence.
    """

    rows: list[Row]
    found: Row | None
    model: AnyModel | None
    sentence: str

    def __repr__(self) -> str:
        return f"CompressedModule({len(self.rows)} rows: {self.sentence})"

    def save(self, directory: str | Path) -> Path:
        """Write the model's folder: `QuantizedModel.save`, or `save_module`.

        Raises:
            ConfigError: nothing was found.
            ModelError, OutputError: as there.
        """
        if self.model is None:
            raise ConfigError(f"there is nothing to save: {self.sentence}")
        if isinstance(self.model, QuantizedModel):
            return self.model.save(directory)
        return save_module(self.model, directory).path


def compress_module(
    model: nn.Module | Callable[[], nn.Module],
    evaluate: object,
    target: CompressTarget,
    loader: object = None,
    *,
    train: Callable[[nn.Module], object] | None = None,
    output: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> CompressedModule:
    """Make any module small enough, and lose as little as that takes::

        compress_module(net, test, CompressTarget(max_size="100KB"), loader, train=fit).save("net")

    It is quantized as it is, then with fewer and fewer channels or neurons, until its files are
    small enough. That first one is the answer, if it loses no more than ``target.max_drop``; what
    is smaller would lose more. It is measured on the rows that it is judged by.

    Args:
        model: a module, which stays as it is, or a function that makes one.
        evaluate: as `sweep_module` takes it.
        target: ``max_size``, ``max_drop`` (hundredths of the metric), ``backend``, ``mode`` and
            ``metric``; the rest is for transformers models.
        loader: what shrinking and quantizing calibrate on.
        train: trains a module after it was shrunk, in place.
        output: a folder for a run of each step of the search; the same call goes on.
        seed: of what is random.
        progress: receives stages, counts and notes.

    Raises:
        ConfigError: a target that asks for something else.
        BadInputError: as `sweep_module`.
        HfcompressError: a candidate that fails.
    """
    other = [name for name in target.model_fields_set if name not in _SERVED]
    if other or target.max_size is None:
        raise ConfigError(
            f"compress_module takes {', '.join(_SERVED)}, and max_size is needed; "
            f"{', '.join(other) or 'give max_size'}"
            f"{' is for transformers models: leave it out' if other else ''}"
        )
    rows: list[Row] = []
    for number, steps in enumerate(_candidates(target, train)):
        metric = target.metric or "accuracy"
        trials = module_trials(steps, (), seed)
        made = prepare_modules(
            model, evaluate, steps, trials, loader, metric, progress or Progress()
        )
        folder = None if output is None else Path(output) / f"{number:02d}"
        result = run_modules(made, f"candidate {number}", (), seed, folder)
        if result.failures:
            raise HfcompressError(result.failures[0][1])
        row = {**result.rows[0], "index": number, "settings": _settings(steps)}
        rows.append(row)
        if row["bytes"] > target.max_size:
            continue
        if 100 * row["drop"] > target.max_drop:
            return CompressedModule(rows, None, None, _missed(row, target))
        (trial,) = made.trials
        kept = made.latest[1] if made.latest else made.model_after(trial, len(trial.steps))[0]
        return CompressedModule(rows, row, kept, _met(row))
    smallest = min(rows, key=lambda row: int(row["bytes"]))
    sentence = (
        f"nothing that was tried is below {size_text(target.max_size)}: the smallest has "
        f"{size_text(smallest['bytes'])}"
    )
    return CompressedModule(rows, None, None, sentence)


def _candidates(
    target: CompressTarget, train: Callable[[nn.Module], object] | None
) -> Iterator[Sequence[ModuleStep]]:
    """The steps of each candidate, the largest first."""
    int8: ModuleStep = {"quantize": target.quantization}
    yield [int8]
    for share in SHARES:
        shrink: ModuleStep = {"shrink": {"macs": share}}
        yield [shrink, int8] if train is None else [shrink, train, int8]


def _settings(steps: Sequence[ModuleStep]) -> Fields:
    fields = [step["shrink"] for step in steps if isinstance(step, dict) and "shrink" in step]
    return {"shrink.macs": fields[0]["macs"]} if fields else {}


def _met(row: Row) -> str:
    return (
        f"{size_text(row['bytes'])}, {row['compression_ratio']:.1f} times smaller: {_metric(row)}"
    )


def _missed(row: Row, target: CompressTarget) -> str:
    return (
        f"the largest that is small enough ({size_text(row['bytes'])}) loses more than "
        f"{target.max_drop:g} points: {_metric(row)}; allow more, or give train"
    )


def _metric(row: Row) -> str:
    metric, drop = str(row["metric"]), float(row["drop"])
    lost = f"{100 * drop:.1f} points" if is_percent(metric) else f"{drop:.3f}"
    return f"{metric} {metric_text(metric, row['value'])}, {lost} lost"
