"""How long pruning takes, beside torch.nn.utils.prune in the same run.

    python -m benchmarks.prune_time --json benchmarks/results/prune_time.json

A DistilBERT-shaped model with random weights: 43.1 M weights in 38 Linears. Each repetition runs
every contestant once, so that a busy moment of the machine hits all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from benchmarks._figures import Figure, parse_arguments, report, seconds, spread
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.unstructured import prune

SPARSITY = 0.5
REPETITIONS = 7
# torch.nn.utils.prune has no types.
l1_unstructured: Any = torch_prune.l1_unstructured
global_unstructured: Any = torch_prune.global_unstructured


def main() -> None:
    arguments = parse_arguments(__doc__)
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(DistilBertConfig())
    report([*magnitude(model)], "prune_time", arguments.json)


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


def config(scope: str) -> PruningConfig:
    return PruningConfig.parse({"sparsity": SPARSITY, "scope": scope, "targets": ["Linear"]})


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
