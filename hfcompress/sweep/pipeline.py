"""``CompressionPipeline``: a recipe's steps on a model, a tokenizer and data that you hold."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel

from hfcompress.checkpoint.modules import save_module
from hfcompress.data.config import DataConfig
from hfcompress.errors import ConfigError, DataError, HfcompressError
from hfcompress.models.loading import LoadedModel, weights_hash
from hfcompress.models.upload import push
from hfcompress.quantization.model import QuantizedModel
from hfcompress.recipes.grid import Trial
from hfcompress.recipes.schema import MeasureConfig, Recipe
from hfcompress.recipes.step_configs import step_as_plain
from hfcompress.report.card import CardSource, model_card
from hfcompress.report.page import headline
from hfcompress.report.rows_view import RowsView
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.cards import card_source
from hfcompress.sweep.content import content_hash
from hfcompress.sweep.executors import in_process
from hfcompress.sweep.experiment import Experiment, prepare
from hfcompress.sweep.module_steps import ModuleStep, is_function, module_trials
from hfcompress.sweep.modules import prepare_modules, run_modules
from hfcompress.sweep.outcome import Outcome, save_model
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.run import finish
from hfcompress.sweep.trial import Runner
from hfcompress.utils import Fields, Progress, Row, is_pretrained

if TYPE_CHECKING:
    from hfcompress.quantization.model import Processor

Data = str | Path | DataConfig | Mapping[str, object]
GIVEN = "(given)"


@dataclass(frozen=True)
class PipelineResult(RowsView):
    """What a pipeline gave.

    Attributes:
        rows: of the dense model and of each step: ``method``, ``value`` with ``low`` and
            ``high``, ``agreement``, ``bytes``, ``compression_ratio``, ``timings`` ...
        model: of the last step; quantized where that step quantizes.
        processor: the model's tokenizer or image processor, cut where a step cut the vocabulary;
            None of a module that is none of transformers.
        source: what it was made from, for its card.
    """

    rows: list[Row]
    model: nn.Module | QuantizedModel
    processor: Any
    source: CardSource | None = None

    def __repr__(self) -> str:
        return f"PipelineResult({len(self.rows)} rows; {headline(self.rows)})"

    def save(self, directory: str | Path) -> Path:
        """Write the model with its processor and a card, as `QuantizedModel.save` or so that
        ``from_pretrained`` reads it; a module that is none of transformers as `save_module`.

        Raises:
            OutputError: a folder that cannot be written.
            ModelError: as `save_module`.
        """
        folder = Path(directory)
        if not isinstance(self.model, QuantizedModel) and not is_pretrained(self.model):
            return save_module(self.model, folder).path
        card = partial(
            model_card, self.rows[-1], name=folder.name, dense=self.rows[0], source=self.source
        )
        if isinstance(self.model, QuantizedModel):
            return self.model.save(folder, self.processor, card())
        assert is_pretrained(self.model)
        save_model(self.model, self.processor, folder, card=card)
        return folder

    def push_to_hub(self, name: str, private: bool | None = None) -> str:
        """Save into a temporary folder, upload it and return its address; see `push`."""
        with tempfile.TemporaryDirectory() as folder:
            return push(self.save(Path(folder) / name.rpartition("/")[2]), name, private)


class CompressionPipeline:
    """Steps one after the other, each measured against the dense model::

        pipeline = CompressionPipeline([
            VocabularyConfig(),
            ShrinkConfig(macs=0.5),
            DistillConfig(epochs=5, learning_rate=5e-4),
            QuantizationConfig(backend="onnxruntime"),
        ], latency={"batch_size": 1, "length": 32})
        result = pipeline.run(model, tokenizer, "sentences/")
        result.rows[-1]["value"], result.rows[-1]["compression_ratio"]
        result.save("sentiment")

    The same steps in a recipe with ``measure: {every_step: true}`` give the same rows.

    `run_module` does the same with any module, without transformers.

    Args:
        steps: config objects, or mappings as in a recipe: ``{"prune": {"sparsity": 0.5}}``; for
            `run_module` also functions that train the module.
        measure: metrics and what else is measured; `MeasureConfig` or its fields.
        latency: batches to time, where ``measure`` does not say; `LatencyConfig` or its fields.
        seed: of everything random.
        task: decides how rows are read.

    Raises:
        ConfigError: an unknown step, a field that does not fit, or an impossible order.
    """

    def __init__(
        self,
        steps: Sequence[ModuleStep],
        measure: MeasureConfig | Mapping[str, object] | None = None,
        latency: object = None,
        seed: int = 0,
        task: str = "text-classification",
    ) -> None:
        fields = measure.to_dict() if isinstance(measure, MeasureConfig) else dict(measure or {})
        if latency is not None:
            fields["latency"] = latency
        self._steps = list(steps)
        self._plan: Fields = {
            "name": "pipeline",
            "model": GIVEN,
            "task": task,
            "steps": [
                step_as_plain(step, place)
                for place, step in enumerate(steps)
                if not is_function(step)
            ],
            "measure": {**fields, "every_step": True},
            "seed": seed,
        }
        Recipe.from_dict({**self._plan, "data": GIVEN}, "CompressionPipeline")

    def run(
        self,
        model: PreTrainedModel,
        processor: Processor,
        data: Data,
        output: str | Path | None = None,
        progress: Progress | None = None,
        cache: StepCache | None = None,
    ) -> PipelineResult:
        """Carry the steps out; the model that is given stays as it is.

        Args:
            model: a classifier, fp32. Its trained head is the teacher's unless a step fine-tunes.
            processor: its tokenizer or image processor.
            data: a path or `DataConfig`, or data sets by split: ``{"train": ..., "validation":
                ...}`` (a ``DatasetDict``, too).
            output: a run's folder, as a recipe's: rows, report; run again, it finishes what is
                missing. Nothing is written where None.
            progress: receives stages, counts and notes.
            cache: where results of training steps are kept.

        Raises:
            BadInputError: anything that does not fit, before anything runs.
            HfcompressError: a step that failed; the rows before it are kept in ``output``.
        """
        if any(map(is_function, self._steps)):
            raise ConfigError(
                "functions train modules in run_module; for transformers models write finetune, "
                "recover or distill"
            )
        config, splits = as_data(data)
        recipe = Recipe.from_dict({**self._plan, "data": config.to_dict()}, "CompressionPipeline")
        experiment = prepare(
            recipe,
            progress or Progress(),
            cache or StepCache(),
            given(model, processor),
            splits,
            trust_remote_code=True,  # the steps are the caller's own
            output=None if output is None else Path(output),
        )
        return run_steps(experiment, None if output is None else RunDirectory(Path(output)))

    def run_module(
        self,
        model: nn.Module | Callable[[], nn.Module],
        loader: object,
        evaluate: object,
        output: str | Path | None = None,
        progress: Progress | None = None,
    ) -> PipelineResult:
        """Carry the steps out on any module; the one that is given stays as it is.

        Args:
            model: a module, or a function that makes one.
            loader: what steps calibrate on; any loader.
            evaluate: measures each model, as `sweep_module` takes it: a function, or labelled
                batches.
            output: as `run`.
            progress: receives stages, counts and notes.

        Raises:
            BadInputError: as `sweep_module`.
            HfcompressError: a step that failed; the rows before it are kept in ``output``.
        """
        seed = int(self._plan["seed"])
        metric = self._plan["measure"].get("metric") or "accuracy"
        trials = module_trials(self._steps, (), seed)
        sweep = prepare_modules(
            model, evaluate, self._steps, trials, loader, metric, progress or Progress(),
            every_step=True,
        )  # fmt: skip
        result = run_modules(sweep, "pipeline", (), seed, output, fail_fast=True)
        if result.failures:
            raise HfcompressError(result.failures[0][1])
        last = sweep.trials[-1]
        if sweep.latest is not None and sweep.latest[0] == last.row_hash:
            return PipelineResult(result.rows, sweep.latest[1], None)
        return PipelineResult(result.rows, sweep.model_after(last, len(last.steps))[0], None)


def run_steps(experiment: Experiment, store: RunDirectory | None) -> PipelineResult:
    """Carry out the one pipeline of an experiment: the steps that have no row yet.

    Raises:
        HfcompressError: a step failed.
    """
    last = experiment.trials[-1]
    runner = Runner(experiment, [])

    def outcomes(pending: list[Trial]) -> Generator[Outcome, None, None]:
        nonlocal runner
        runner = Runner(experiment, pending)
        return in_process(runner, None if store is None else store.path)

    with nullcontext() if store is None else store.locked(False, experiment.progress.note):
        # The steps after one that fails would fail the same way, and take as long.
        result = finish(experiment, store, outcomes, fail_fast=True)
    if result.failures:
        raise HfcompressError(result.failures[0][1])
    state = runner.latest
    if state is None or not runner.pending or runner.pending[-1] is not last:
        state, _ = runner.state_after(last)
    source = card_source(experiment)
    return PipelineResult(result.rows, state.model, state.processor, source)


def given(model: PreTrainedModel, processor: Processor) -> LoadedModel:
    """A model as if it had been loaded; a copy of it is worked on."""
    vocabulary = processor.get_vocab() if hasattr(processor, "get_vocab") else str(processor)
    fingerprint = content_hash([weights_hash(model), vocabulary])
    own = copy.deepcopy(model)
    own.train(False)
    return LoadedModel(own, processor, False, fingerprint)


def as_data(data: Data) -> tuple[DataConfig, Mapping[str, Dataset] | None]:
    """What is given as data: the config, and the rows where they are there already.

    Raises:
        ConfigError: fields that do not fit.
        DataError: splits that are not data sets, or none.
    """
    if isinstance(data, DataConfig):
        return data, None
    if isinstance(data, (str, Path)):
        return DataConfig(path=str(data)), None
    if any(isinstance(value, Dataset) for value in data.values()):
        wrong = [name for name, value in data.items() if not isinstance(value, Dataset)]
        if wrong:
            raise DataError(
                f"data: {wrong[0]!r} is not a datasets.Dataset; give one for each split, "
                f"such as train and validation"
            )
        return DataConfig(path=GIVEN), data
    return DataConfig.from_dict(data, "data"), None
