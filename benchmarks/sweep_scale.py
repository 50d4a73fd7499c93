"""What a sweep costs besides its trials: 10,000 trials that cost nothing, and 60 real ones.

    python -m benchmarks.sweep_scale --json benchmarks/results/sweep_scale.json

The first part carries one trial out and gives its row, histograms and logits, with figures of
their own, as those of all 10,000 points of a grid. All else is what `run` does: the recipe is
checked, its points are hashed, rows are written, the report is drawn, the finished folder is
resumed. Processor time counts, so that other work of the machine does not.

The second part runs the same 60 trials in one process, with two workers, and each as a run of its
own (a few of them, times 60), in turns and on a quiet machine. Its model has MiniLM's shape and
random weights; each process and worker has one thread.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from benchmarks._figures import Figure, parse_arguments, report, seconds, spread
from hfcompress.recipes.grid import Trial
from hfcompress.recipes.schema import expand, load_recipe
from hfcompress.recipes.yaml import dump_yaml
from hfcompress.sweep.cache import StepCache
from hfcompress.sweep.executors import Outcomes
from hfcompress.sweep.experiment import Experiment, prepare
from hfcompress.sweep.outcome import Outcome, perform
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.run import finish, run
from hfcompress.sweep.run import report as draw_report
from hfcompress.sweep.trial import Runner
from hfcompress.utils import Fields, Progress, quiet_libraries

TRIALS = 10_000
EARLY = 1_000  # trials after which memory is compared with that at the end
GROWTH = 1.05  # of memory from there to the end, at most
WORDS = [f"word{number}" for number in range(200)]
METHODS, SCOPES = ["magnitude", "random"], ["layer", "global"]
SPARSITIES = [round(0.99 * index / 49, 4) for index in range(50)]
ROUNDS = 1
ALONE = 4  # of the 60 trials that have a run of their own in each round


def main() -> None:
    quiet_libraries()
    arguments = parse_arguments(
        __doc__, trials=f"that cost nothing, instead of {TRIALS:,}", work="folder, kept"
    )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(arguments.work or folder)
        figures = [*bookkeeping(work / "free", int(arguments.trials or TRIALS))]
        figures += side_by_side(work / "real")
    report(figures, "sweep_scale", arguments.json)


# --- trials that cost nothing ------------------------------------------------------------------


def bookkeeping(folder: Path, trials: int) -> Iterator[Figure]:
    """Figures of a run whose trials cost nothing."""
    seeds = range(trials // (len(SPARSITIES) * len(METHODS) * len(SCOPES)))
    grid = {
        "prune.method": METHODS, "prune.scope": SCOPES, "prune.sparsity": SPARSITIES,
        "seed": list(seeds),
    }  # fmt: skip
    path, output = write_recipe(folder, width=32, rows=872, grid=grid), folder / "run"
    yield Figure("validate the grid", processor(lambda: load_recipe(path)), "s", target="<= 2")

    recipe, memory, cache = load_recipe(path), Memory(), StepCache(folder / "cache")
    experiment = prepare(recipe, memory, cache)
    count = len(experiment.trials)
    carry_out = partial(free, experiment)
    took = processor(lambda: finish(experiment, RunDirectory(output), carry_out, draw=False))
    yield Figure("bookkeeping of a trial", 1000 * took / count, "ms", target="<= 20")
    early, late = memory.after[EARLY], memory.after[count]
    yield Figure(f"memory after {EARLY:,} trials", early, "MB")
    yield Figure(f"memory after {count:,} trials", late, "MB", target=f"<= {GROWTH * early:.0f}")
    yield Figure("report", processor(lambda: draw_report(output)), "s", target="<= 20")
    again = processor(lambda: run(recipe, output, cache=cache))
    yield Figure("resume of the finished folder", again, "s", target="<= 5")
    page = (output / "report.html").stat().st_size
    yield Figure("page", page / 1e6, "MB", target="<= 5")
    whole = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    yield Figure("folder, for each trial", whole / count / 1e3, "kB")


def free(experiment: Experiment, pending: list[Trial]) -> Outcomes:
    """Carry out one of the trials, and give its results as those of all."""
    runner = Runner(experiment, pending)
    real = perform(runner, pending[len(pending) // 2], Path("not written to"))
    assert real.row is not None, real.reason
    row, weights, own = json.dumps(real.row), json.dumps(real.weights), real.row_hash
    for trial in pending:
        found = json.loads(weights)
        found[trial.row_hash] = found.pop(own)
        logits = real.predictions[own]
        yield Outcome(
            trial.settings,
            trial.row_hash,
            {**json.loads(row), **figures_of(trial), "method": runner.label(trial)},
            predictions={trial.row_hash: logits, f"dense-{trial.dense_prefix}": logits},
            weights=found,
        )
        runner.release(trial)


def figures_of(trial: Trial) -> Fields:
    """What a row has of its own, made up: each column of the page's table has many values."""
    noise, sparsity = random.Random(trial.index), trial.settings["prune.sparsity"]
    value = 0.9 - 0.3 * sparsity**2 - 0.01 * noise.random()
    return {
        "hash": trial.row_hash, "index": trial.index, "settings": trial.settings,
        "seed": trial.seed, "requested_sparsity": sparsity, "actual_sparsity": sparsity,
        "model_sparsity": 0.3 * sparsity, "nonzero_parameters": noise.randint(10**6, 10**7),
        "bytes": noise.randint(10**6, 10**7), "macs": noise.randint(10**6, 10**7),
        "value": value, "low": value - 0.02, "high": value + 0.02, "drop": 0.9 - value,
        "agreement": value, "mcnemar_p": noise.random(), "seconds": noise.random(),
    }  # fmt: skip


class Memory(Progress):
    """Resident megabytes of this process after each thousandth trial and after the last."""

    def __init__(self) -> None:
        self.after: dict[int, float] = {}

    def sweep(self, done: int, total: int) -> None:
        if done % EARLY == 0 or done == total:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.after[done] = pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def processor(function: Callable[[], object]) -> float:
    """Seconds of processor time that a call takes."""
    start = time.process_time()
    function()
    return time.process_time() - start


# --- trials that are real ----------------------------------------------------------------------


def side_by_side(folder: Path) -> Iterator[Figure]:
    """Figures of 60 trials in one process, with two workers, and in a run of its own each."""
    sparsities = [round(index / 30, 3) for index in range(30)]
    grid = {"prune.scope": SCOPES, "prune.sparsity": sparsities}
    path = write_recipe(folder, width=384, rows=881, grid=grid)  # 872 are measured, as of SST-2
    trials = expand(load_recipe(path))
    times: dict[str, list[float]] = {"one": [], "two": [], "alone": []}
    for turn in range(ROUNDS):
        for name, workers in (("one", "1"), ("two", "2")):
            output = folder / f"{name}{turn}"
            call = partial(command, path, output, "--workers", workers)
            times[name].append(seconds(call))
        some = random.Random(turn).sample(trials, ALONE)
        alone = [seconds(partial(run_alone, path, trial, folder / f"{turn}")) for trial in some]
        times["alone"].append(statistics.fmean(alone) * len(trials))
    yield spread("60 trials in one process", times["one"], "s")
    yield spread("60 trials with two workers", times["two"], "s")
    yield spread("60 separate runs", times["alone"], "s")
    yield spread("two workers against one process", _ratios(times, "one"), "x", ">= 1.7")
    yield spread("two workers against separate runs", _ratios(times, "alone"), "x", ">= 5")


def _ratios(times: Mapping[str, Sequence[float]], name: str) -> list[float]:
    return [a / b for a, b in zip(times[name], times["two"], strict=True)]


def run_alone(path: Path, trial: Trial, folder: Path) -> None:
    """Run one point of a recipe's grid by itself."""
    settings = [f"--set={field}={value}" for field, value in trial.settings.items()]
    command(path, folder.with_name(f"{folder.name}-{trial.index}"), *settings)


def command(path: Path, output: Path, *options: str) -> None:
    """Run a recipe as the command line does, on one thread."""
    whole = [sys.executable, "-m", "hfcompress.cli", "run", str(path), "--output", str(output)]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run(  # nosec B603 # our own command
        [*whole, *options], check=True, stdout=subprocess.DEVNULL, env={**os.environ, **threads}
    )


# --- a model, sentences and a recipe -----------------------------------------------------------


def write_recipe(folder: Path, width: int, rows: int, grid: Fields) -> Path:
    """Write a recipe that prunes a model with random weights, and the model and rows it names."""
    words = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokens = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=tokens, pad_token="[PAD]", unk_token="[UNK]")
    config = BertConfig(
        vocab_size=len(words), num_hidden_layers=6, num_attention_heads=4, hidden_size=width,
        intermediate_size=4 * width,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(5, 40))) for _ in range(rows)]
    lines = [f"{text}\t{place % 2}\n" for place, text in enumerate(texts)]
    (folder / "rows.tsv").write_text(f"sentence\tlabel\n{''.join(lines)}")
    recipe = {
        "model": str(folder / "model"),
        "data": {"path": str(folder / "rows.tsv"), "eval_fraction": 0.99},
        "steps": [{"prune": {"method": "magnitude"}}],
        "grid": grid,
    }
    (folder / "recipe.yaml").write_text(dump_yaml(recipe))
    return folder / "recipe.yaml"


if __name__ == "__main__":
    main()
