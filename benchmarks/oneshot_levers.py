"""What each lever of one-shot pruning is worth, at 80 % on MiniLM-L6 and SST-2.

    python -m benchmarks.oneshot_levers --data FOLDER --json FILE

Each line adds one lever to the line before. Beside accuracy stands the KL divergence of the
predictions from the dense model's (in millinats, averaged over the dev sentences): it moves long
before accuracy does. One calibration seed; model and data as in oneshot_quality.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from benchmarks._figures import Figure, parse_arguments, report
from benchmarks.oneshot_quality import Lines, recipe, teacher_folder
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.run import run
from hfcompress.utils import quiet_libraries

SPARSITY = 0.8
BASE: dict[str, Any] = {"sparsity": SPARSITY, "calibration_rows": 1024, "seed": 0}
# Each adds to the line before, but for the first three, which stand alone.
ALONE: dict[str, dict[str, Any]] = {
    "magnitude": {"method": "magnitude"},
    "Wanda": {"method": "wanda"},
    "SparseGPT, statistics of the dense model": {"method": "sparsegpt", "statistics": "dense"},
}
ADDED: dict[str, dict[str, Any]] = {
    "SparseGPT, layer by layer": {"method": "sparsegpt", "statistics": "sequential"},
    "+ bias repair": {"bias_repair": True},
    "+ the dense model's outputs as target": {"reference": "outputs"},
    "+ ADMM mask and least squares (ALPS)": {
        "method": "alps",
        "allocation": "uniform",
        "alps.output_importance": 0.0,
        "alps.token_importance": 0.0,
        "alps.damping": 0.01,
        "alps.iterations": 60,
    },
    "+ importance of outputs": {"alps.output_importance": 0.5},
    "+ importance of tokens": {"alps.token_importance": 0.8},
    "+ more damping": {"alps.damping": 0.03, "alps.iterations": 45},
    "+ layers' sparsities by dynamic programming": {"allocation": "optimal"},
    "+ 2,048 calibration rows": {"calibration_rows": 2048},
}


def main() -> None:
    quiet_libraries()
    arguments = parse_arguments(
        __doc__, data="folder with train.tsv and dev.tsv", work="folder of the runs' rows"
    )
    work = Path(arguments.work or "runs/oneshot_quality")
    overrides = [f"data.path={arguments.data}"] if arguments.data else []
    base = recipe("oneshot-methods", teacher_folder(work, overrides), overrides)
    grids = [
        {f"prune.{field}": (value,) for field, value in {**BASE, **fields}.items()}
        for fields in levers().values()
    ]
    exact = base.measure.replace(precision="fp32")  # a divergence reads every logit
    rows = run(base.replace(grid=tuple(grids), measure=exact), work / "levers", Lines())
    store = RunDirectory(work / "levers")
    figures = []
    for name, row in zip(levers(), rows, strict=True):
        lost = round(-100 * row["drop"], 2)
        note = f"agreement with dense {100 * row['agreement']:.1f} %, {row['seconds']:.0f} s"
        figures.append(Figure(f"{name}, points", lost, "points", note=note))
        figures.append(Figure(f"{name}, divergence", divergence(store, row), "millinats"))
    report(figures, "oneshot_levers", arguments.json)


def levers() -> dict[str, dict[str, Any]]:
    """Name of each line -> its fields."""
    lines = dict(ALONE)
    so_far: dict[str, Any] = {}
    for name, fields in ADDED.items():
        so_far = {**so_far, **fields}
        lines[name] = so_far
    return lines


def divergence(store: RunDirectory, row: dict[str, Any]) -> float:
    """KL(dense || pruned) of the predictions, mean over the rows, in thousandths of a nat."""
    (dense_file,) = (store.path / "predictions").glob("dense-*")
    dense = log_probabilities(store.load_predictions(dense_file.stem))
    pruned = log_probabilities(store.load_predictions(row["hash"]))
    return round(1000 * float((np.exp(dense) * (dense - pruned)).sum(1).mean()), 1)


def log_probabilities(logits: NDArray[np.float32] | None) -> NDArray[np.float64]:
    assert logits is not None
    found: NDArray[np.float64] = log_softmax(logits.astype(np.float64), axis=1)
    return found


if __name__ == "__main__":
    main()
