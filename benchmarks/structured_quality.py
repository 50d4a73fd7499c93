"""What smaller shapes cost in accuracy, one shot and distilled, beside others in the same run.

    python -m benchmarks.structured_quality --data FOLDER --json FILE

The model is MiniLM-L6 fine-tuned on SST-2 (recipes/minilm-sst2-teacher.yaml, kept by content
hash); heads and neurons of its encoder go until a share of the encoder's multiply-accumulates is
left; accuracy is that of the 872 dev sentences, where one standard error is 1.1 points. Ours is the
shrink step of recipes/shrink-half.yaml at other budgets, and its distill step after it. Beside
it: even widths by magnitude, and Torch-Pruning's Taylor importance (pip install --no-deps
torch-pruning==1.6.1), both distilled by the same step, too. One fine-tuning is lucky and the next
is not, and what is made of a lucky one looks worse than it is: where a distilled figure is the mean
of several seeds, each seed has a dense model of its own, fine-tuned with it. Minutes are CPU
minutes of each of torch's threads: on a quiet machine what the wall clock says. FOLDER holds
train.tsv and dev.tsv; without it the hub's GLUE is read. Each row is kept in --work, so that a run
that was cut goes on; --only NAME makes one row (--only list names them) and no table, --only
one-shot leaves out what is distilled, --only kept tables the rows that are there and makes none.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedModel

from benchmarks._clock import CpuClock
from benchmarks._figures import Figure, parse_arguments, report
from benchmarks._rows import DenseSetting, after_step, kept_row
from benchmarks._structured_peers import ROWS, torch_pruning_missing, torch_pruning_taylor
from benchmarks.oneshot_quality import recipe as shipped
from benchmarks.oneshot_quality import teacher_folder
from hfcompress.models.sublayers import sublayers
from hfcompress.recipes.step_configs import DistillConfig, ShrinkStepConfig, parse_steps
from hfcompress.shrinking.sublayers.costs import layer_macs
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.experiment import prepare
from hfcompress.utils import Progress, quiet_libraries

SEEDS = (0, 1, 2)
# Share of the encoder's multiply-accumulates -> points that may be lost.
ONE_SHOT = {0.5: 0.5, 0.33: 2.0, 0.25: 5.0}
DISTILLED = {0.5: 0.0, 0.33: 0.7, 0.25: 1.5, 0.15: 3.0}
# Where what is to be reached is nearer than the noise of one run: several seeds, and more of the
# minutes that there are than the recipe takes.
SEVERAL, LONGER = (0.5,), {0.5: 8.0}
PEERS_DISTILLED = (0.25,)
ONE_SHOT_MINUTES, DISTILLED_MINUTES = 3.0, 15.0
# Tokens of a sentence, for the attention products: a few percent of all.
LENGTH = 26


@dataclass(frozen=True)
class Row:
    """One shrunk model.

    Attributes:
        accuracy: on dev, in [0, 1].
        minutes: CPU minutes of each thread (`CpuClock`).
        wall: minutes by the wall clock, for the record.
        left: share of the multiply-accumulates that is left.
        dense: accuracy of the dense model it was made of.
    """

    accuracy: float
    minutes: float
    wall: float
    left: float
    dense: float


@dataclass(frozen=True)
class Setting(DenseSetting):
    """What all rows share."""

    shrink: ShrinkStepConfig
    distill: DistillConfig
    dense: float


Shrink = Callable[[Setting, float, int], PreTrainedModel]
SettingOf = Callable[[int], Setting]


def ours(setting: Setting, share: float, seed: int) -> PreTrainedModel:
    config = setting.shrink.replace(macs=share, seed=seed)
    return after_step(setting.model, config, setting.context(seed))


def even_magnitude(setting: Setting, share: float, seed: int) -> PreTrainedModel:
    config = setting.shrink.replace(macs=share, score="magnitude")
    return after_step(setting.model, config, setting.context(seed))


def torch_pruning(setting: Setting, share: float, seed: int) -> PreTrainedModel:
    model = setting.model
    torch_pruning_taylor(model, list(setting.context(seed).calibration(ROWS, seed).batches), share)
    return model


PEERS: dict[str, Shrink] = {
    "even widths by magnitude": even_magnitude,
    "Torch-Pruning, Taylor": torch_pruning,
}


def main() -> None:
    quiet_libraries()
    arguments = parse_arguments(
        __doc__,
        data="folder with train.tsv and dev.tsv",
        work="folder of the rows",
        only="make one row only; list names them; one-shot: all that is not distilled; kept: table "
        "what is there",
    )
    makers = all_rows()
    if arguments.only == "list":
        Console().print("\n".join(makers))
        return
    work = Path(arguments.work or "runs/structured_quality")
    overrides = [f"data.path={arguments.data}"] if arguments.data else []
    setting_of = functools.cache(partial(prepare_setting, work, overrides))
    wanted = list(makers)
    if arguments.only == "one-shot":
        wanted = [name for name in makers if "distilled" not in name]
    elif arguments.only == "kept":
        wanted = [name for name in makers if (work / "rows" / f"{name}.json").is_file()]
    elif arguments.only:
        wanted = [arguments.only]
    rows = {}
    for name in wanted:
        rows[name] = row = kept_row(
            work / "rows" / f"{name}.json", Row, partial(makers[name], setting_of)
        )
        told = f"{row.accuracy:.2%}, {row.minutes:.1f} CPU min, {row.left:.1%} left"
        Console(stderr=True, highlight=False).print(f"{name}: {told}")
    if arguments.only in (None, "one-shot", "kept"):
        report(figures(rows), "structured_quality", arguments.json)


def prepare_setting(work: Path, overrides: list[str], seed: int) -> Setting:
    """The dense model fine-tuned with a seed, the rows, and the recipe's steps."""
    recipe = shipped("shrink-half", teacher_folder(work, overrides, seed), overrides)
    bench = prepare(recipe, Progress(), StepCache())
    shrink, training = (step.config for step in parse_steps(recipe.steps))
    assert isinstance(shrink, ShrinkStepConfig)
    assert isinstance(training, DistillConfig)
    setting = Setting(bench, shrink, training, 0.0)
    return replace(setting, dense=setting.accuracy(setting.model))


def all_rows() -> dict[str, Callable[[SettingOf], Row]]:
    """Every row by name, the quick ones first."""
    peers = {} if torch_pruning_missing() else {"Torch-Pruning, Taylor": torch_pruning}
    peers |= {"even widths by magnitude": even_magnitude}
    rows: dict[str, Callable[[SettingOf], Row]] = {}
    for share in ONE_SHOT:
        for seed in SEEDS:
            rows[f"ours, {share:.0%}, seed {seed}"] = partial(one_shot, ours, share, seed)
        for name, peer in peers.items():
            rows[f"{name}, {share:.0%}"] = partial(one_shot, peer, share, 0)
    for share in DISTILLED:
        for seed in SEEDS if share in SEVERAL else SEEDS[:1]:
            rows[distilled_row(share, seed)] = partial(distilled, ours, share, seed)
    for share in PEERS_DISTILLED:
        for name, peer in peers.items():
            rows[f"{name}, {share:.0%}, distilled"] = partial(distilled, peer, share, 0)
    return rows


def distilled_row(share: float, seed: int) -> str:
    """The name of one of our distilled rows."""
    return f"ours, {share:.0%}, distilled" + (f", seed {seed}" if share in SEVERAL else "")


def one_shot(method: Shrink, share: float, seed: int, setting_of: SettingOf) -> Row:
    """Made of the dense model of seed 0; the seed is that of the rows to calibrate on."""
    setting = setting_of(0)
    clock = CpuClock()
    return finished(method(setting, share, seed), clock, setting)


def distilled(method: Shrink, share: float, seed: int, setting_of: SettingOf) -> Row:
    """Made of the dense model of the same seed."""
    setting = setting_of(seed)
    clock = CpuClock()
    model = method(setting, share, seed)
    step = setting.distill.replace(epochs=LONGER.get(share, setting.distill.epochs))
    model = after_step(model, step, setting.context(seed))
    return finished(model, clock, setting)


def finished(model: PreTrainedModel, clock: CpuClock, setting: Setting) -> Row:
    minutes, wall = clock.minutes, clock.wall
    return Row(setting.accuracy(model), minutes, wall, left(model, setting), setting.dense)


def left(model: PreTrainedModel, setting: Setting) -> float:
    dense = setting.model
    return layer_macs(model, sublayers(model), LENGTH) / layer_macs(dense, sublayers(dense), LENGTH)


def figures(rows: dict[str, Row]) -> list[Figure]:
    """Points against the dense model, and minutes."""

    levels = sorted({100 * row.dense for row in rows.values()})
    note = f"{len(levels)} seeds"
    found = [
        Figure("dense accuracy", statistics.mean(levels), "%", levels[0], levels[-1], note=note)
    ]
    for share, limit in ONE_SHOT.items():
        mine = [rows[f"ours, {share:.0%}, seed {seed}"] for seed in SEEDS]
        found.append(over_seeds(f"ours, {share:.0%}", mine, limit))
    one = [
        row.minutes for name, row in rows.items() if name.startswith("ours") and "dist" not in name
    ]
    slowest = round(max(one), 2)
    found.append(
        Figure("ours, one shot, minutes", slowest, "min", target=f"<= {ONE_SHOT_MINUTES:g}")
    )
    for name, row in rows.items():
        if not name.startswith("ours"):
            title = row_title(name)
            found.append(over_seeds(title, [row], None))
    for share, limit in DISTILLED.items():
        names = dict.fromkeys(distilled_row(share, seed) for seed in SEEDS)
        mine = [rows[name] for name in names if name in rows]
        if mine:
            found.append(over_seeds(f"ours, distilled, {share:.0%}", mine, limit))
    trained = [row.minutes for name, row in rows.items() if "distilled" in name]
    if trained:
        target = f"<= {DISTILLED_MINUTES:g}"
        longest = round(max(trained), 1)
        found.append(Figure("distilled, minutes", longest, "min", target=target))
    return found


def over_seeds(title: str, rows: list[Row], limit: float | None) -> Figure:
    """Points against its dense model, the mean over the seeds, and the points that may be lost."""
    points = [round(100 * (row.accuracy - row.dense), 2) for row in rows]
    low, high = (min(points), max(points)) if len(points) > 1 else (None, None)
    note = f"{rows[0].left:.1%} left, {statistics.mean(row.minutes for row in rows):.1f} minutes"
    note += f", {len(rows)} seeds" if len(rows) > 1 else ""
    target = None if limit is None else f">= {0 - limit:g}"
    mean = round(statistics.mean(points), 2)
    return Figure(f"{title}, points", mean, "points", low, high, target, note)


def row_title(name: str) -> str:
    """A row's name with the budget at its end: ``ours, distilled, 25%``."""
    budget = f"{row_share(name):.0%}"
    return ", ".join([*(part for part in name.split(", ") if part != budget), budget])


def row_share(name: str) -> float:
    """The budget that a row's name says."""
    return float(next(part for part in name.split(", ") if part.endswith("%"))[:-1]) / 100


if __name__ == "__main__":
    main()
