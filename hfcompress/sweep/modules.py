"""``sweep_module``: steps over a grid on any module, measured by a function of the caller's."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from torch import nn

from hfcompress.errors import ModelError
from hfcompress.inference import without_labels
from hfcompress.measure.macs import count_macs
from hfcompress.measure.size import calculate_sparsity, count_parameters
from hfcompress.measure.weights import analyze_weight_distribution, weight_grids
from hfcompress.models.architectures import default_targets
from hfcompress.models.loading import weights_hash
from hfcompress.pruning.targets import prunable
from hfcompress.quantization.model import QuantizedModel
from hfcompress.recipes.grid import Trial
from hfcompress.recipes.yaml import dump_yaml
from hfcompress.steps.context import StepReport
from hfcompress.sweep.content import content_hash
from hfcompress.sweep.evaluation import Answers, Evaluation, as_evaluation
from hfcompress.sweep.module_steps import (
    AnyModel,
    Function,
    ModuleStep,
    Rows,
    module_beginnings,
    module_trials,
    run_module_step,
    seeded,
    settings_of_steps,
)
from hfcompress.sweep.outcome import INTERRUPTS, Outcome, Predictions, failed
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.run import Sheet, SweepResult, finish_trials
from hfcompress.sweep.trial import LineLabels, model_bytes
from hfcompress.utils import Fields, Progress, Row

# Raised when the meaning of a result changes, so that older rows are not reused.
FORMAT = 1
SHEET = "sweep.yaml"


def sweep_module(
    model: nn.Module | Callable[[], nn.Module],
    evaluate: object,
    steps: Sequence[ModuleStep] = (),
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]] = (),
    loader: object = None,
    output: str | Path | None = None,
    *,
    metric: str = "accuracy",
    seed: int = 0,
    name: str = "sweep",
    progress: Progress | None = None,
    draw: bool = True,
    wait: bool = False,
    retry_failed: bool = True,
    fail_fast: bool = False,
) -> SweepResult:
    """Carry steps out on a module for every point of a grid, and measure what each leaves::

        sweep_module(
            model, lambda net: evaluate(net, test), [PruningConfig(), retrain],
            {"prune.sparsity": [0, 0.5, 0.8, 0.9]}, train, "runs/mine",
        )

    Rows, curve, page and going on where a run stopped are those of a recipe; so are the rows'
    fields. A function is known by its name, its own code and the tensors, arrays and loaders of
    tensors that it reads by name: after a change in what it calls, give another ``output``.

    Args:
        model: any module, which stays as it is; or a function that makes one, called under each
            trial's seed.
        evaluate: a function of the model (a module, or a `QuantizedModel`) that returns its
            quality, higher is better: a number, or one for each example, which gives intervals and
            paired tests. Or labelled batches: their classes are compared with the model's.
        steps: configs (`PruningConfig`, `ShrinkConfig`, `QuantizationConfig`), mappings as in a
            recipe, or functions that train the module in place or return another; zeros of pruned
            weights are held while a function trains.
        grid: dotted fields and the values of each, as a recipe has them:
            ``{"prune.sparsity": [0, 0.5]}``; or several grids.
        loader: what steps calibrate on; any loader.
        output: the run's folder, which the same call resumes; nothing is written where None.
            Data of other kinds inside ``evaluate`` are not noticed: give another folder for them.
        metric: what ``evaluate`` measures; names of rates are shown in percent.
        seed: of what is random, where the grid names none.
        name: of the page.
        progress: receives stages, counts and notes.
        draw: write table, curves and page at the end.
        wait: wait where another process is at work in the folder.
        retry_failed: run trials again that failed in an earlier run of the folder.
        fail_fast: begin no trial after one that failed.

    Raises:
        ConfigError: a step or a grid that does not fit, or an ``evaluate`` that returns no number.
        DataError, CalibrationError: a loader that cannot be used.
        OutputError: the folder cannot be written, or belongs to another run.
    """
    parts = [grid] if isinstance(grid, Mapping) else list(grid)
    trials = module_trials(steps, parts, seed)
    sweep = prepare_modules(model, evaluate, steps, trials, loader, metric, progress or Progress())
    return run_modules(sweep, name, parts, seed, output, draw, wait, retry_failed, fail_fast)


def run_modules(
    sweep: ModuleSweep,
    name: str,
    grid: Sequence[Mapping[str, Sequence[Any]]],
    seed: int,
    output: str | Path | None,
    draw: bool = True,
    wait: bool = False,
    retry_failed: bool = True,
    fail_fast: bool = False,
) -> SweepResult:
    """Run the trials that have no row yet; as `sweep_module`, of what `prepare_modules` gave.

    Raises:
        BadInputError: as `sweep_module`.
    """
    store = None if output is None else RunDirectory(Path(output))
    sheet = sweep.sheet(name, grid, seed)
    with ExitStack() as stack:
        if store is not None:
            if store.path.is_dir():
                stack.enter_context(store.locked(wait, sweep.progress.note))
            done = {row["hash"] for row in store.rows()}
        else:
            done = set()
        if any(trial.row_hash not in done for trial in sweep.trials):
            sweep.check()
        if store is not None:
            stack.enter_context(store.locked(wait, sweep.progress.note))
        return finish_trials(
            sweep.trials, sheet, sweep.progress, store, sweep.outcomes, draw, retry_failed,
            fail_fast,
        )  # fmt: skip


def prepare_modules(
    model: nn.Module | Callable[[], nn.Module],
    evaluate: object,
    steps: Sequence[ModuleStep],
    trials: Sequence[Trial],
    loader: object,
    metric: str,
    progress: Progress,
    every_step: bool = False,
) -> ModuleSweep:
    """Check all that trials share; nothing is written.

    Raises:
        BadInputError: as `sweep_module`.
    """
    if every_step:
        trials = module_beginnings(trials, steps)
    first = trials[0] if trials else None
    start = _make(model, 0 if first is None else first.seed)
    rows, evaluation = Rows(loader, start), as_evaluation(evaluate, metric, start)
    sweep = ModuleSweep(model, steps, evaluation, rows, progress, every_step)
    shared = [
        FORMAT, f"{start}", weights_hash(start),
        rows.key,
    ]  # fmt: skip
    key = evaluation.key
    sweep.trials = [_hashed(trial, shared, key) for trial in trials]
    return sweep


def _make(model: nn.Module | Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module of the caller's, or a new one, in eval mode; it may be changed.

    Raises:
        ModelError: neither a module nor a function that returns one.
    """
    if isinstance(model, nn.Module):
        return copy.deepcopy(model).eval()
    if not callable(model):
        raise ModelError(
            f"the model is {type(model).__name__}; give a module, or a function that makes one"
        )
    with seeded(seed):
        made = model()
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"the function that makes the model returned {type(made).__name__}; return a module"
        )
    return made.eval()


def _hashed(trial: Trial, shared: Sequence[object], evaluation: object) -> Trial:
    prefixes = [content_hash([*shared, trial.seed])]
    for step in trial.steps:
        prefixes.append(content_hash([prefixes[-1], step.name, step.config.non_default_fields()]))
    row_hash = content_hash([prefixes[-1], evaluation])
    return replace(trial, prefixes=tuple(prefixes), row_hash=row_hash)


@dataclass
class ModuleSweep:
    """What the trials of one sweep share, and what carries them out.

    Attributes:
        model: the module, or what makes it.
        steps: as given.
        evaluation: measures a model.
        rows: what steps calibrate on.
        progress: receives stages, counts and notes.
        every_step: trials are the beginnings of one pipeline.
        trials: with content hashes.
        latest: hash and model of the trial that ran last.
    """

    model: nn.Module | Callable[[], nn.Module]
    steps: Sequence[ModuleStep]
    evaluation: Evaluation
    rows: Rows
    progress: Progress
    every_step: bool = False
    trials: list[Trial] = field(default_factory=list)
    latest: tuple[str, AnyModel] | None = None
    _kept: dict[str, tuple[AnyModel, list[StepReport]]] = field(default_factory=dict)
    _uses: Counter[str] = field(default_factory=Counter)
    _dense: dict[str, tuple[Answers, int]] = field(default_factory=dict)

    def sheet(self, name: str, grid: Sequence[Mapping[str, Sequence[Any]]], seed: int) -> Sheet:
        """What the folder says of the run."""
        steps = settings_of_steps(self.trials[-1].steps) if self.trials else []
        varied = [{field: list(values) for field, values in part.items()} for part in grid]
        data: Fields = {
            "name": name, "model": _name_of(self.model), "steps": steps, "grid": varied,
            "seed": seed,
        }  # fmt: skip
        found = self.evaluation.references
        references = None if found is None else (found[0], found[1], "text-classification")
        return Sheet(name, dump_yaml(data), SHEET, (), lambda: references)

    def check(self) -> None:
        """Refuse an evaluation that gives no number, before anything is written.

        Raises:
            ConfigError: as `Evaluation.answers`.
        """
        trial = self.trials[0]
        self.progress.stage("measuring the model")
        model = _make(self.model, trial.seed)
        answers = self.evaluation.answers(model)
        self._dense[trial.prefixes[0]] = answers, model_bytes(model)

    def outcomes(self, pending: list[Trial]) -> Generator[Outcome, None, None]:
        """Carry trials out, one after the other; what they share is done once."""
        for trial in pending:
            self._uses.update({*trial.prefixes, trial.dense_prefix})
        for trial in pending:
            try:
                yield self._perform(trial)
            except INTERRUPTS:
                raise
            except BaseException as error:  # whatever a function of the caller's raises
                yield failed(trial, error)
            for prefix in {*trial.prefixes}:
                self._uses[prefix] -= 1
                if self._uses[prefix] <= 0:
                    self._kept.pop(prefix, None)

    def model_after(self, trial: Trial, place: int) -> tuple[AnyModel, list[StepReport]]:
        """The model after the first ``place`` steps, the caller's to change, and what each did."""
        prefix = trial.prefixes[place]
        if prefix in self._kept:
            model, reports = self._kept[prefix]
            return copy.deepcopy(model), list(reports)
        if place == 0:
            model, reports = _make(self.model, trial.seed), []
        else:
            before, reports = self.model_after(trial, place - 1)
            assert isinstance(before, nn.Module)
            step, given = trial.steps[place - 1], self.steps[place - 1]
            function = cast("Function", given) if step.name == "function" else None
            model, report = run_module_step(
                before, step, function, self.rows, trial.seed, self.progress
            )
            reports = [*reports, report]
        if self._uses[prefix] > 1 or place == trial.dense_place:
            self._kept[prefix] = (copy.deepcopy(model), list(reports))
        return model, reports

    @cached_property
    def _labels(self) -> LineLabels:
        return LineLabels(self.trials, self.every_step)

    def dense_answers(self, trial: Trial) -> tuple[Answers, int]:
        """What the model that a trial is compared with was measured to be, and its bytes."""
        prefix = trial.dense_prefix
        if prefix not in self._dense:
            model, _ = self.model_after(trial, trial.dense_place)
            self._dense[prefix] = self.evaluation.answers(model), model_bytes(model)
        return self._dense[prefix]

    def _perform(self, trial: Trial) -> Outcome:
        dense, dense_bytes = self.dense_answers(trial)
        started = time.perf_counter()
        model, reports = self.model_after(trial, len(trial.steps))
        self.progress.stage("measuring the model")
        same = trial.dense_place == len(trial.steps)
        own = dense if same else self.evaluation.answers(model)
        row = self._row(trial, model, reports)
        row |= self.evaluation.quality(own, dense)
        row["compression_ratio"] = dense_bytes / row["bytes"]
        row["seconds"] = round(time.perf_counter() - started, 3)
        self.latest = trial.row_hash, model
        predictions: Predictions = {trial.row_hash: own.arrays} if own.arrays else {}
        weights = self._weights(trial, model, row)
        return Outcome(
            trial.settings, trial.row_hash, row, predictions=predictions, weights=weights
        )

    def _row(self, trial: Trial, model: AnyModel, reports: list[StepReport]) -> Row:
        network = network_of(model)
        pruning = next((report for report in reversed(reports) if report.layers is not None), None)
        left = prunable(network)
        layers = [
            layer for layer in (pruning.layers or () if pruning else ()) if layer["name"] in left
        ]
        names = [layer["name"] for layer in layers] or list(default_targets(network))
        sparsity = calculate_sparsity(network, names or None)
        return {
            "hash": trial.row_hash, "index": trial.index, "settings": trial.settings,
            "method": self._labels.of(trial), "seed": trial.seed,
            "requested_sparsity": None if pruning is None else pruning.requested_sparsity,
            "actual_sparsity": sparsity.targets, "model_sparsity": sparsity.model,
            "parameters": count_parameters(network),
            "nonzero_parameters": count_parameters(network, nonzero=True),
            "bytes": model_bytes(model), "macs": self._macs(network), "layers": layers, "note": "",
            "steps": [
                {"step": step.name, **report.to_dict(layers=False)}
                for step, report in zip(trial.steps, reports, strict=True)
            ],
        }  # fmt: skip

    def _macs(self, network: nn.Module) -> int | None:
        """Multiply-accumulates of one example; None without calibration rows."""
        if self.rows.calibration is None:
            return None
        batch = without_labels(self.rows.calibration.batches[0])
        return count_macs(network, {name: value[:1] for name, value in batch.items()}).total

    def _weights(self, trial: Trial, model: AnyModel, row: Row) -> dict[str, Fields]:
        """Histograms of the pruned layers' weights and those before, and pieces of the weights."""
        network = network_of(model)
        names = [layer["name"] for layer in row["layers"]] or list(default_targets(network))
        if not names:
            return {}
        dense = network_of(self.model_after(trial, trial.dense_place)[0])
        modules = dict(dense.named_modules())
        shared = [name for name in names if name in modules]
        if not shared:
            return {}
        key = f"dense-{content_hash([trial.dense_prefix, shared])}"
        before = analyze_weight_distribution(dense, shared).to_dict()
        after = analyze_weight_distribution(network, names, edges=before["edges"]).to_dict()
        own = {**after, "dense": key, "grids": weight_grids(network, names)}
        return {key: before, trial.row_hash: own}


def network_of(model: AnyModel) -> nn.Module:
    """The torch module: itself, or the one that was quantized."""
    return model.source if isinstance(model, QuantizedModel) else model


def _name_of(model: object) -> str:
    kind = type(model) if isinstance(model, nn.Module) else model
    return str(getattr(kind, "__qualname__", type(model).__qualname__))
