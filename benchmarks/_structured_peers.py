"""The same encoder shrunk by Torch-Pruning: its Taylor importance, all layers ranked together."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from hfcompress.calibration.batches import Batch
from hfcompress.models.sublayers import sublayers

STEPS = 8
ROWS = 1024


def torch_pruning_missing() -> bool:
    """Whether it has to be left out."""
    try:
        import torch_pruning  # noqa: F401
    except ImportError:
        return True
    return False


def torch_pruning_taylor(model: PreTrainedModel, batches: list[Batch], share: float) -> None:
    """Remove heads and neurons until a share of the multiply-accumulates is left, in place.

    As many heads as neurons go, in `STEPS` rounds with gradients collected anew before each; the
    hidden size stays, as in ours.

    Args:
        model: a sequence classifier.
        batches: labelled rows for the gradients.
        share: of heads and of neurons that stays.
    """
    import torch_pruning as tp

    heads: dict[Any, int] = {}
    left_alone = [module for name, module in model.named_modules() if name == "classifier"]
    left_alone += [
        module for name, module in model.named_modules() if name.endswith("pooler.dense")
    ]
    for part in sublayers(model):
        left_alone.append(part.out(model))  # its outputs are the hidden size
        if part.kind == "heads":
            heads |= {model.get_submodule(n): part.units(model) for n in part.producers}
    example = {k: v for k, v in batches[0].items() if k != "labels"}
    pruner = tp.pruner.BasePruner(
        model,
        example,
        tp.importance.GroupTaylorImportance(),
        global_pruning=True,
        pruning_ratio=1 - share,
        head_pruning_ratio=1 - share,
        max_pruning_ratio=1.0,
        iterative_steps=STEPS,
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        ignored_layers=left_alone,
        output_transform=lambda output: output.logits.sum(),
    )
    for _ in range(STEPS):
        model.zero_grad()
        for batch in batches:
            model(**batch).loss.backward()
        pruner.step()
    model.zero_grad()
