"""The rows of a sweep in experiment trackers: a run for each trial, with the keys of the CSV."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from hfcompress.errors import ConfigError, first_line
from hfcompress.report.csv_table import flat_row
from hfcompress.training.tracking import LOGS, Tracker, check_tracker, logs_in, other_trackio_folder
from hfcompress.utils import Row


@dataclass(frozen=True)
class TrackedTrial:
    """One trial as trackers take it.

    Attributes:
        project: the recipe's name.
        name: index and hash, as the folder of its model is called.
        settings: what the grid has set, and the seed.
        values: every other number of the row.
        texts: everything else.
        folder: of the logs.
    """

    project: str
    name: str
    settings: dict[str, str | float]
    values: dict[str, float]
    texts: dict[str, str]
    folder: Path


def check_trackers(names: Sequence[Tracker], folder: Path | None) -> None:
    """Refuse trackers that are not installed, and a run without a folder for their logs.

    Raises:
        MissingExtraError, ConfigError: such a tracker, such a run.
    """
    for name in names:
        check_tracker(name)
    if names and folder is None:
        raise ConfigError("track keeps its logs in the run's folder; give output, too")


def track_row(
    names: Sequence[Tracker], project: str, row: Row, folder: Path, note: Callable[[str], None]
) -> None:
    """Log a row, finished or failed, to trackers; one that fails is noted and stops nothing.

    Args:
        names: which trackers.
        project: the recipe's name.
        row: as it is in results.jsonl, or the row of a failed trial.
        folder: the run's folder.
        note: receives what went wrong.
    """
    if not names:
        return
    logs = folder / LOGS
    trial = _trial(project, row, logs)
    logs.mkdir(parents=True, exist_ok=True)
    other = other_trackio_folder(logs) if "trackio" in names else None
    if other is not None:
        note(f"trackio was imported before this run and keeps its logs in {other}")
    with logs_in(logs, trial.name), redirect_stdout(sys.stderr):
        for name in names:
            try:
                _LOG[name](trial)
            except Exception as error:  # theirs: a server, a login, a full disk
                note(f"{name} has not logged a trial: {first_line(error)}")


def _trial(project: str, row: Row, folder: Path) -> TrackedTrial:
    """A row, divided into what was set and what came out."""
    settings: dict[str, str | float] = {}
    values: dict[str, float] = {}
    texts: dict[str, str] = {}
    lists = {f"settings.{key}": str(value) for key, value in row["settings"].items()}
    for key, value in {**lists, **flat_row(row)}.items():
        plain = float(value) if isinstance(value, (int, float)) else str(value)
        if key.startswith("settings.") or key == "seed":
            settings[key] = plain
        elif isinstance(plain, float):
            values[key] = plain
        elif value is not None:
            texts[key] = plain
    name = f"{int(row['index']):03d}-{str(row['hash'])[:8]}"
    return TrackedTrial(project, name, settings, values, texts, folder)


def _tensorboard(trial: TrackedTrial) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(trial.folder / "tensorboard" / trial.name)) as writer:
        writer.add_hparams(trial.settings, trial.values, run_name=".")
        for key, text in trial.texts.items():
            writer.add_text(key, text)


def _trackio(trial: TrackedTrial) -> None:
    import trackio

    run = trackio.init(
        project=trial.project, name=trial.name, config={**trial.settings, **trial.texts},
        embed=False, auto_log_gpu=False, auto_log_cpu=False,
    )  # fmt: skip
    run.log(trial.values)
    run.finish()


def _wandb(trial: TrackedTrial) -> None:
    import wandb

    run = wandb.init(
        project=trial.project, name=trial.name, config=trial.settings, dir=str(trial.folder),
        reinit="create_new", settings=wandb.Settings(silent=True),
    )  # fmt: skip
    run.log(trial.values)
    run.summary.update(trial.texts)
    run.finish()


def _mlflow(trial: TrackedTrial) -> None:
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(trial.project)
    number = experiment.experiment_id if experiment else client.create_experiment(
        trial.project, artifact_location=(trial.folder / "mlflow").resolve().as_uri()
    )  # fmt: skip
    run = client.create_run(number, run_name=trial.name).info.run_id
    client.log_batch(
        run,
        metrics=[Metric(key, value, 0, 0) for key, value in trial.values.items()],
        params=[Param(key, str(value)) for key, value in trial.settings.items()],
        tags=[RunTag(key, text) for key, text in trial.texts.items()],
    )
    client.set_terminated(run, "FAILED" if trial.texts.get("status") == "failed" else "FINISHED")


_LOG: dict[Tracker, Callable[[TrackedTrial], None]] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
