"""Experiment trackers: the package that each needs, and the folder that its logs are kept in.

Importing this costs nothing; a tracker's package is imported where it is used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from hfcompress.utils import check_installed

Tracker = Literal["tensorboard", "trackio", "wandb", "mlflow"]
LOGS = "logs"
"""Folder of a run that holds them."""
_EXTRAS = {"tensorboard": "track", "trackio": "track", "wandb": "wandb", "mlflow": "mlflow"}


def check_tracker(name: Tracker) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        MissingExtraError: the message holds the pip command.
    """
    check_installed(name, _EXTRAS[name])


@contextmanager
def logs_in(folder: Path, training: str) -> Iterator[None]:
    """Let every tracker write into a folder while the body runs.

    Variables that the user has set stay as they are. Weights & Biases is offline unless they say
    otherwise, so that nothing is sent anywhere: ``wandb sync FOLDER`` uploads it.

    Args:
        folder: where to; trackio reads it once, when it is imported.
        training: names the folder of one training in TensorBoard.
    """
    folder = folder.resolve()
    wanted = {
        "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard" / training),
        "TRACKIO_DIR": str(folder / "trackio"),
        "WANDB_DIR": str(folder),
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "HF_MLFLOW_LOG_ARTIFACTS": "0",
    }
    new = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def other_trackio_folder(folder: Path) -> Path | None:
    """Return where trackio keeps its logs instead, where it was imported with another folder."""
    used = getattr(sys.modules.get("trackio.utils"), "TRACKIO_DIR", None)
    if not isinstance(used, Path) or "TRACKIO_DIR" in os.environ:
        return None
    return None if used == folder.resolve() / "trackio" else used
