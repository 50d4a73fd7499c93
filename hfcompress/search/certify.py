"""``certify``: how much accuracy one model loses against another at most, on labelled rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hfcompress.data.config import DataConfig
from hfcompress.data.encode import text_limit
from hfcompress.data.load import Examples
from hfcompress.errors import ConfigError, ModelError
from hfcompress.inference import predict
from hfcompress.measure.certificate import Certificate, certify_drop
from hfcompress.models.labels import align_labels, label_names, unlike_labels
from hfcompress.models.loading import ModelConfig, load_model
from hfcompress.models.outputs import KIND_NAMES
from hfcompress.quantization.load import load
from hfcompress.quantization.manifest import MANIFEST
from hfcompress.tasks.registry import find_task, task_of_checkpoint
from hfcompress.tasks.task import Task
from hfcompress.utils import Progress

_BATCH = 32


def certify(
    dense: str | Path,
    small: str | Path,
    data: str | Path | DataConfig,
    max_drop: float = 1.0,
    confidence: float = 0.95,
    *,
    task: str | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Say how sure it is that a smaller model loses no more accuracy than allowed::

        found = certify("my-model", "my-model-int8", "test.csv", max_drop=1.0)
        print(found.sentence)    # at most 1.0 points are lost, 95% sure, on 1,821 rows (...)

    The rows must be ones that nothing was trained, calibrated or chosen on. Any two models will
    do, however they were made.

    Args:
        dense: hub name or folder of a model, or a folder of a quantized one.
        small: likewise.
        data: labelled rows; of several splits the one that ``data.eval`` names.
        max_drop: points (hundredths) of accuracy that may be lost.
        confidence: such as 0.95.
        task: what both answer; None takes what the dense model was saved for.
        progress: receives stages and counts.

    Raises:
        SourceError, DataError, ModelError: a model or data that cannot be read, or whose labels
            do not correspond.
        ConfigError: a value out of range.
    """
    if not 0 <= max_drop < 100:
        raise ConfigError(f"max_drop must be points from 0 to 100, not {max_drop}")
    progress = progress or Progress()
    asked = task_of_checkpoint(str(dense)) if task is None else find_task(task)
    config = data if isinstance(data, DataConfig) else DataConfig(path=str(data))
    progress.stage("reading the data")
    examples = asked.load(config, need_train=False)
    if examples.kind != "classification":
        raise ConfigError(
            f"certify bounds the accuracy of one label for each example, and the data ask for "
            f"{KIND_NAMES[examples.kind]}; compare the models with a recipe"
        )
    before, after = (
        _right(str(path), asked, examples, config, progress) for path in (dense, small)
    )
    return certify_drop(before, after, max_drop / 100, confidence)


def _right(
    path: str, task: Task, examples: Examples, config: DataConfig, progress: Progress
) -> NDArray[np.bool_]:
    """Whether a model gives each measured row its label."""
    progress.stage(f"predicting with {path}")
    if (Path(path) / MANIFEST).is_file():
        scores, names = _quantized_scores(Path(path), examples, progress)
    else:
        loaded = load_model(ModelConfig(path=path), task)
        task.check_head(loaded.model.config, path, examples.kind)
        longest = text_limit(config.max_length, loaded.model)
        rows = task.encode(examples, examples.eval, loaded.processor, longest)
        scores = predict(loaded.model, rows, _BATCH, progress.work)
        names = label_names(loaded.model.config)
    alignment = align_labels(examples.labels, names)
    if alignment is None:
        raise ModelError(unlike_labels(examples.labels, names, f"model {path!r}"))
    if alignment.note is not None:
        progress.note(alignment.note)
    expected = np.asarray(alignment.places)[np.asarray(examples.eval["label"][:])]
    return np.asarray(scores.argmax(axis=1) == expected)


def _quantized_scores(
    folder: Path, examples: Examples, progress: Progress
) -> tuple[NDArray[np.float32], list[str]]:
    predictor = load(folder)
    parts, count = [], len(examples.eval)
    for start in range(0, count, _BATCH):
        rows = examples.eval[start : start + _BATCH]
        columns = [rows[column] for column in examples.columns]
        batch = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
        parts.append(predictor.scores(batch))
        progress.work(min(start + _BATCH, count), count)
    return np.concatenate(parts), list(predictor.labels)
