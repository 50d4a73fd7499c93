"""A ten-point magnitude sweep beside the loop that most people write.

    python -m benchmarks.sweep_throughput --json benchmarks/results/sweep_throughput.json

The loop reloads the model for each sparsity, prunes it with torch.nn.utils.prune and evaluates
in the dataset's own order, tokenising batches of 32 padded to their longest sentence. Ours is
`hfcompress.run` on the same model, rows and sparsities, report included. Both run end to end,
in turn, in one process; their predictions must agree.

By default the model is the quickstart's (MiniLM-L6 fine-tuned on film reviews, kept by content
hash) and the rows are 1,000 of its reviews; --model and --data take a local classifier and a TSV.

Where the time goes: half of the loop's is padding, most of the rest matrix products in fp32. Ours
sorts by length, and where the processor multiplies bf16 (AMX, AVX-512 BF16) predicts in bf16 and
computes every row again in fp32 whose class bf16 could change; elsewhere all rows are in fp32, and
the padding is what is gained.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import prune as torch_prune
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks._figures import Figure, parse_arguments, report, spread
from hfcompress.data.load import load_examples
from hfcompress.models.architectures import default_targets
from hfcompress.recipes.library import find_recipe
from hfcompress.recipes.schema import Recipe, load_recipe, parse_recipe
from hfcompress.sweep.results import RunDirectory
from hfcompress.sweep.run import run
from hfcompress.utils import Progress, quiet_libraries

SPARSITIES = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
ROUNDS = 2
ROWS = 1000
Classes = NDArray[np.int64]


def main() -> None:
    quiet_libraries()
    arguments = parse_arguments(
        __doc__, model="folder of a sequence classifier", data="labelled TSV or CSV"
    )
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or quickstart_model(Path(folder))
        recipe = sweep_recipe(model, arguments.data)
        times: dict[str, list[float]] = {"ours": [], "loop": []}
        for turn in range(ROUNDS):
            started = time.perf_counter()
            ours, stages = sweep(recipe, Path(folder) / f"run{turn}")
            times["ours"].append(time.perf_counter() - started)
            started = time.perf_counter()
            theirs = loop(model, recipe)
            times["loop"].append(time.perf_counter() - started)
    same = min(float((a == b).mean()) for a, b in zip(ours, theirs, strict=True))
    ratios = [b / a for a, b in zip(times["ours"], times["loop"], strict=True)]
    figures = [
        spread("the usual loop", times["loop"], "s"),
        spread("ours", times["ours"], "s"),
        spread("speedup", ratios, "x", ">= 3"),
        Figure("equal predictions, worst sparsity", same, "share", target=">= 1"),
        *(Figure(f"of which {name}", value, "s") for name, value in stages.items()),
    ]
    report(figures, "sweep_throughput", arguments.json)


def quickstart_model(folder: Path) -> str:
    """The quickstart's fine-tuned model, trained now or taken from the step cache."""
    quickstart = load_recipe(find_recipe("quickstart"))
    trained = quickstart.replace(steps=quickstart.steps[:1], grid=(), save_models=True)
    run(trained, folder / "model")
    return str(next((folder / "model" / "models").iterdir()))


def sweep_recipe(model: str, data: str | None) -> Recipe:
    rows: dict[str, Any] = {"path": data, "max_length": 64}
    if data is None:
        rows = (
            load_recipe(find_recipe("quickstart")).data.replace(group=None, max_eval=ROWS).to_dict()
        )
    return parse_recipe(
        {
            "model": model,
            "data": rows,
            "steps": [{"prune": {"method": "magnitude", "scope": "layer"}}],
            "grid": {"prune.sparsity": SPARSITIES},
        }
    )


class Stopwatch(Progress):
    """Where the time of a run goes, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._since = "starting", time.perf_counter()

    def stage(self, text: str) -> None:
        now = time.perf_counter()
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = text.split(":")[0].rstrip("0123456789, rows"), now

    def work(self, done: int, total: int) -> None:
        if done == total:
            self.stage("measuring and writing")


def sweep(recipe: Recipe, output: Path) -> tuple[list[Classes], dict[str, float]]:
    """Our predictions at each sparsity, and where the time went."""
    watch = Stopwatch()
    result = run(recipe, output, watch)
    watch.stage("end")
    store = RunDirectory(output)
    logits = [store.load_predictions(row["hash"]) for row in result.rows]
    return [part.argmax(1) for part in logits if part is not None], watch.seconds


def loop(folder: str, recipe: Recipe) -> list[Classes]:
    """What most people write."""
    examples = load_examples(recipe.data, "text", need_train=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)  # nosec B615 # a local folder
    predictions = []
    for sparsity in SPARSITIES:
        made = AutoModelForSequenceClassification.from_pretrained(folder)  # nosec B615 # likewise
        model = made.eval()
        for module in default_targets(model).values():
            prune_layer(module, sparsity)
        texts = examples.eval[examples.columns[0]]
        predictions.append(evaluate(model, tokenizer, list(texts)))
    return predictions


def prune_layer(module: nn.Module, sparsity: float) -> None:
    l1_unstructured: Any = torch_prune.l1_unstructured  # torch gives these no types
    remove: Any = torch_prune.remove
    l1_unstructured(module, "weight", amount=sparsity)
    remove(module, "weight")


@torch.no_grad()
def evaluate(model: nn.Module, tokenizer: Any, texts: Sequence[str]) -> Classes:
    found = []
    for start in range(0, len(texts), 32):
        batch = tokenizer(
            texts[start : start + 32],
            padding=True,
            truncation=True,
            max_length=64,
            return_tensors="pt",
        )
        found.append(model(**batch).logits.argmax(-1).numpy())
    classes: Classes = np.concatenate(found)
    return classes


if __name__ == "__main__":
    main()
