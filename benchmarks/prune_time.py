"""How long pruning takes, beside torch.nn.utils.prune in the same run.

    python -m benchmarks.prune_time --json benchmarks/results/prune_time.json

A DistilBERT-shaped model with random weights: 43.1 M weights in 38 Linears. Each repetition runs
every contestant once, so that a busy moment of the machine hits all of them. The calibrated
methods read 128 rows of 128 tokens; their peak memory is that of a process of its own.
"""

from __future__ import annotations

import copy
import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from benchmarks._figures import Figure, parse_arguments, report, seconds, spread
from hfcompress.calibration.batches import Calibration
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.prune import prune

SPARSITY = 0.5
REPETITIONS = 7
CALIBRATED_REPETITIONS = 3
CALIBRATION_ROWS = 128
SWEEP = (0.5, 0.6, 0.7, 0.8, 0.9)
# torch.nn.utils.prune has no types.
l1_unstructured: Any = torch_prune.l1_unstructured
global_unstructured: Any = torch_prune.global_unstructured


def main() -> None:
    arguments = parse_arguments(__doc__)
    model = distilbert()
    figures = [*magnitude(model), *calibrated(model), memory()]
    report(figures, "prune_time", arguments.json)


def distilbert() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = DistilBertForSequenceClassification(DistilBertConfig())
    return model


def magnitude(model: nn.Module) -> list[Figure]:
    """Ours and torch's, per layer and global: seconds, speedup, and whether they agree."""
    contestants: dict[str, Callable[[nn.Module], object]] = {
        "ours per layer": lambda net: prune(net, config("layer")),
        "torch per layer": torch_per_layer,
        "ours global": lambda net: prune(net, config("global")),
        "torch global": torch_global,
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    pruned: dict[str, nn.Module] = {}
    for _ in range(REPETITIONS):
        for name, function in contestants.items():
            pruned[name] = copy.deepcopy(model)
            times[name].append(seconds(lambda f=function, n=name: f(pruned[n])))  # type: ignore[misc]
    figures = [spread(f"{name}, seconds", values, "s") for name, values in times.items()]
    for scope, target in (("per layer", ">= 20"), ("global", ">= 30")):
        ratios = [
            theirs / ours
            for ours, theirs in zip(times[f"ours {scope}"], times[f"torch {scope}"], strict=True)
        ]
        figures.append(spread(f"speedup {scope}", ratios, "x", target))
        same = agreement(pruned[f"ours {scope}"], pruned[f"torch {scope}"])
        figures.append(Figure(f"same weights kept {scope}", same, "share", target=">= 1"))
    return figures


def calibrated(model: nn.Module) -> list[Figure]:
    """Wanda against the bare calibration pass; SparseGPT at five sparsities against one."""
    times: dict[str, list[float]] = {
        name: [] for name in ("pass", "wanda", "sparsegpt once", "sparsegpt five times")
    }
    for _ in range(CALIBRATED_REPETITIONS):
        fresh = calibration()
        times["pass"].append(seconds(lambda: fresh.look(model, {}, lambda *_: None)))  # noqa: B023
        times["wanda"].append(sweep(model, "wanda", (0.5,)))
        times["sparsegpt once"].append(sweep(model, "sparsegpt", (0.5,)))
        times["sparsegpt five times"].append(sweep(model, "sparsegpt", SWEEP))
    return [
        *(spread(f"{name}, seconds", values, "s") for name, values in times.items()),
        spread("wanda over calibration pass", ratios(times, "wanda", "pass"), "x", "<= 1.2"),
        spread(
            "sparsegpt, five sparsities over one",
            ratios(times, "sparsegpt five times", "sparsegpt once"),
            "x",
            "<= 1.5",
        ),
    ]


def ratios(times: dict[str, list[float]], above: str, below: str) -> list[float]:
    return [a / b for a, b in zip(times[above], times[below], strict=True)]


def sweep(model: nn.Module, method: str, sparsities: tuple[float, ...]) -> float:
    """Seconds to prune copies of the model with calibration data that all of them share."""
    data, total = calibration(), 0.0
    for sparsity in sparsities:
        pruned = copy.deepcopy(model)
        asked = PruningConfig.from_dict(
            {"method": method, "sparsity": sparsity, "statistics": "dense"}
        )
        total += seconds(lambda: prune(pruned, asked, data))  # noqa: B023
    return total


def calibration() -> Calibration:
    """Random tokens: as many sequences as the papers of SparseGPT and Wanda calibrate on."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(CALIBRATION_ROWS // 8):
        tokens = torch.randint(0, 30_000, (8, 128), generator=generator)
        batches.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    return Calibration(batches)


def memory() -> Figure:
    """Peak memory of sequential SparseGPT, model included, over the model's size."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        peak, size = pool.apply(peak_memory)
    return Figure("sparsegpt, peak memory over the model's", peak / size, "x", target="<= 2.5")


def peak_memory() -> tuple[int, int]:
    """Bytes that the model and pruning it add to a process, at the worst moment; model's bytes."""
    prune(nn.Linear(8, 8), PruningConfig(sparsity=0.5, targets=("Linear",)))  # loads libraries
    before = peak_of_process()
    model = distilbert()
    size = sum(parameter.nbytes for parameter in model.parameters())
    prune(model, PruningConfig(method="sparsegpt", sparsity=0.5), calibration())
    return peak_of_process() - before, size


def peak_of_process() -> int:
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's ru_maxrss starts at what the parent process had
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def config(scope: str) -> PruningConfig:
    return PruningConfig.from_dict({"sparsity": SPARSITY, "scope": scope, "targets": ["Linear"]})


def torch_per_layer(model: nn.Module) -> None:
    for module in linears(model):
        l1_unstructured(module, "weight", SPARSITY)


def torch_global(model: nn.Module) -> None:
    places = [(module, "weight") for module in linears(model)]
    global_unstructured(places, pruning_method=torch_prune.L1Unstructured, amount=SPARSITY)


def agreement(ours: nn.Module, theirs: nn.Module) -> float:
    """Share of weights on which both agree, where ties (equal magnitudes) do not count."""
    equal = total = 0
    for mine, other in zip(linears(ours), linears(theirs), strict=True):
        differs = mine.weight != other.weight
        boundary = torch.minimum(kept_least(mine.weight), kept_least(other.weight))
        tie = torch.maximum(mine.weight.abs(), other.weight.abs()) == boundary
        equal += int((~differs | tie).sum())
        total += differs.numel()
    return equal / total


def kept_least(weight: torch.Tensor) -> torch.Tensor:
    """The smallest magnitude that was kept."""
    return weight.abs().masked_fill(weight == 0, float("inf")).min()


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


if __name__ == "__main__":
    main()
