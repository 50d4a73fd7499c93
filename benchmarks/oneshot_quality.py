"""How much accuracy pruning costs, one shot and recovered, beside peers in the same run.

    python -m benchmarks.oneshot_quality --data FOLDER --json FILE

The model is MiniLM-L6 fine-tuned on SST-2 (recipes/minilm-sst2-teacher.yaml, kept by content
hash); all Linears of its encoder are pruned; accuracy is that of the 872 dev sentences, where one
standard error is 1.1 points. One shot, ours are recipes/oneshot-methods.yaml on three dense
models, fine-tuned and calibrated with a seed each: what is made of a lucky fine-tuning looks worse
than it is, and of an unlucky one better. Where not a single point may be lost
(50 and 60 %) each of them is pruned with all three calibration seeds, since that is nearer than
noise. Peers prune the same layers of the same three models: torch.nn.utils.prune, and NNCF where it
is installed. The recovery recipes start from the first of them. FOLDER holds train.tsv and dev.tsv;
without it the hub's GLUE is read. Rows are kept in --work, so that a run that was cut goes on.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn
from torch.nn.utils import prune as torch_prune
from transformers import PreTrainedModel

from benchmarks._figures import Figure, parse_arguments, report
from benchmarks._rows import DenseSetting
from hfcompress.models.architectures import default_targets
from hfcompress.recipes.library import find_recipe
from hfcompress.recipes.schema import Recipe, load_recipe
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.experiment import Experiment, prepare
from hfcompress.sweep.run import run
from hfcompress.utils import Progress, quiet_libraries

SEEDS = (0, 1, 2)
SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9)
# Points that may be lost against the dense model.
ONE_SHOT = {0.5: 0.0, 0.6: 0.0, 0.7: 1.5, 0.8: 3.5, 0.9: 9.0}
SEMI_STRUCTURED = 0.7
# Recipe -> sparsity, points that may be lost, minutes that it may take on 2 cores.
RECOVERED = {"recover-80": (0.8, 1.0, 15.0), "recover-90": (0.9, 2.0, 30.0)}
OURS = "alps"
# Where each dense model is pruned with all calibration seeds: nothing may be lost, and noise is
# larger than that.
CLOSE = tuple(sparsity for sparsity, points in ONE_SHOT.items() if points == 0)


class Lines(Progress):
    """One line for each finished trial."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, stderr=True)

    def row(self, row: dict[str, Any]) -> None:
        self.console.print(f"{row['value']:.2%} {row['seconds']:.0f} s {row['settings']}")


@dataclass(frozen=True)
class Measured:
    """What was made of one dense model.

    Attributes:
        dense: its accuracy, in [0, 1].
        ours: the rows of recipes/oneshot-methods.yaml.
        peers: points against it, by name.
    """

    dense: float
    ours: list[dict[str, Any]]
    peers: dict[str, float]


def main() -> None:
    quiet_libraries()
    arguments = parse_arguments(
        __doc__, data="folder with train.tsv and dev.tsv", work="folder of the runs' rows"
    )
    work = Path(arguments.work or "runs/oneshot_quality")
    overrides = [f"data.path={arguments.data}"] if arguments.data else []
    found = [measured(seed, work, overrides) for seed in SEEDS]
    levels = [100 * one.dense for one in found]
    mean = statistics.mean(levels)
    figures = [
        Figure("dense accuracy", mean, "%", min(levels), max(levels), note=f"{len(levels)} seeds")
    ]
    for name in found[0].peers:
        figures.append(averaged(name, [one.peers[name] for one in found]))
    figures += one_shot([row for one in found for row in one.ours])
    teacher = teacher_folder(work, overrides)
    for name in RECOVERED:
        figures += recovered(name, recipe(name, teacher, overrides), work)
    report(figures, "oneshot_quality", arguments.json)


def measured(seed: int, work: Path, overrides: list[str]) -> Measured:
    """Fine-tune a dense model with a seed, and prune it in every way with that seed."""
    teacher = teacher_folder(work, overrides, seed)
    chosen = without_the_easy(recipe("oneshot-methods", teacher, overrides), seed)
    bench = prepare(chosen, Progress(), StepCache())
    rows = run(bench.recipe, work / f"oneshot-{seed}", Lines()).rows
    dense = next(row["value"] for row in rows if row["requested_sparsity"] == 0)
    return Measured(dense, rows, dict(peers(bench, dense)))


def teacher_folder(work: Path, overrides: list[str], seed: int = 0) -> str:
    """The dense model, fine-tuned once for each seed."""
    folder = work / (f"teacher-{seed}" if seed else "teacher")
    run(
        load_recipe(find_recipe("minilm-sst2-teacher"), [*overrides, f"seed={seed}"]),
        folder,
        Lines(),
    )
    return str(next((folder / "models").iterdir()))


def recipe(name: str, teacher: str, overrides: list[str]) -> Recipe:
    return load_recipe(find_recipe(name), [f"model={teacher}", *overrides])


def without_the_easy(chosen: Recipe, seed: int) -> Recipe:
    """The recipe without the sparsities that have no figure to reach, and with one seed.

    Ours keeps all of its seeds where nothing may be lost.
    """
    own: dict[str, tuple[Any, ...]] = {"prune.seed": (seed,)}
    grid = []
    for part in chosen.grid:
        if part["prune.method"] != (OURS,) or "prune.pattern" in part:
            grid.append(only(part, {"prune.sparsity": (0, *SPARSITIES), **own}))
        else:
            rest = tuple(s for s in SPARSITIES if s not in CLOSE)
            grid.append(only(part, {"prune.sparsity": CLOSE}))
            grid.append(only(part, {"prune.sparsity": rest, **own}))
    return chosen.replace(grid=tuple(grid))


def only(part: dict[str, tuple[Any, ...]], wanted: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """A part of a grid with some values of some fields."""
    return {
        field: tuple(value for value in values if value in wanted.get(field, values))
        for field, values in part.items()
    }


def one_shot(rows: list[dict[str, Any]]) -> Iterator[Figure]:
    """Points gained or lost by each method at each sparsity, averaged over seeds."""
    for sparsity in SPARSITIES:
        for method in ("magnitude", "wanda", "sparsegpt", OURS):
            found = [row for row in rows if is_method(row, method) and at(row, sparsity)]
            limit = ONE_SHOT[sparsity] if method == OURS else None
            yield of_rows(f"ours, {method}, {sparsity:.0%}, points", found, limit)
    found = [row for row in rows if row["settings"].get("prune.pattern") == "2:4"]
    yield of_rows(f"ours, {OURS}, 2:4, points", found, SEMI_STRUCTURED)


def is_method(row: dict[str, Any], method: str) -> bool:
    settings = row["settings"]
    plain = settings.get("prune.scope", "layer") == "layer" and "prune.pattern" not in settings
    return plain and bool(settings["prune.method"] == method)


def at(row: dict[str, Any], sparsity: float) -> bool:
    return bool(abs(row["requested_sparsity"] - sparsity) < 1e-9)


def of_rows(name: str, rows: list[dict[str, Any]], limit: float | None) -> Figure:
    agreement = 100 * statistics.mean(row["agreement"] for row in rows)
    note = f"{len(rows)} runs, agreement with dense {agreement:.1f} %"
    return averaged(name, [-100 * row["drop"] for row in rows], limit, note)


def averaged(name: str, points: list[float], limit: float | None = None, note: str = "") -> Figure:
    """The mean over seeds with the worst and the best seed, in points against dense."""
    target = None if limit is None else f">= {0 - limit:g}"
    mean = round(statistics.mean(points), 2)
    return Figure(name, mean, "points", min(points), max(points), target, note)


def recovered(name: str, chosen: Recipe, work: Path) -> list[Figure]:
    """A recipe that trains: points against dense, and the minutes that it took."""
    sparsity, points, minutes = RECOVERED[name]
    (row,) = run(chosen, work / name, Lines()).rows
    assert abs(row["actual_sparsity"] - sparsity) < 1e-3
    took = row["seconds"] / 60
    return [
        Figure(f"{name}, points", round(-100 * row["drop"], 2), "points", target=f">= {-points:g}"),
        Figure(f"{name}, minutes", round(took, 1), "min", target=f"<= {minutes:g}"),
    ]


# --- peers -------------------------------------------------------------------------------------


def peers(bench: Experiment, dense: float) -> Iterator[tuple[str, float]]:
    """The same layers of the same model, pruned by others: names, and points against dense."""
    contestants: dict[str, Callable[[PreTrainedModel, float], nn.Module]] = {
        "torch.nn.utils.prune, per layer": torch_per_layer,
        "torch.nn.utils.prune, global": torch_global,
    }
    if has_nncf():
        contestants["NNCF, magnitude per layer"] = nncf_local
    for name, function in contestants.items():
        for sparsity in SPARSITIES:
            model = function(copy.deepcopy(bench.loaded.model), sparsity)
            gained = 100 * (DenseSetting(bench).accuracy(model) - dense)
            yield f"{name}, {sparsity:.0%}, points", gained


def torch_per_layer(model: PreTrainedModel, sparsity: float) -> nn.Module:
    l1_unstructured: Any = torch_prune.l1_unstructured  # torch gives these no types
    for module in default_targets(model).values():
        l1_unstructured(module, "weight", sparsity)
    return model


def torch_global(model: PreTrainedModel, sparsity: float) -> nn.Module:
    global_unstructured: Any = torch_prune.global_unstructured
    places = [(module, "weight") for module in default_targets(model).values()]
    global_unstructured(places, pruning_method=torch_prune.L1Unstructured, amount=sparsity)
    return model


def has_nncf() -> bool:
    try:
        import nncf  # noqa: F401
    except ImportError:
        Console(stderr=True).print("NNCF is left out: pip install 'hfcompress[openvino]'")
        return False
    return True


def nncf_local(model: PreTrainedModel, sparsity: float) -> nn.Module:
    """NNCF's magnitude pruning; embeddings, pooler and classifier left alone as by ours."""
    import nncf

    ids = {"input_ids": model.dummy_inputs["input_ids"]}
    pruned: nn.Module = nncf.prune(
        model,
        nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL,
        ratio=sparsity,
        ignored_scope=nncf.IgnoredScope(patterns=[".*embeddings.*", ".*pooler.*", "classifier.*"]),
        examples_inputs=ids,
    )
    return pruned


if __name__ == "__main__":
    main()
