"""Find the channels of a network that can only be removed together, by running it.

A residual connection adds channel to channel, a batch norm and a depthwise convolution work on
each alone: a filter can go only with all of them. (Fang et al. 2023, DepGraph, arXiv 2301.12900;
here every operator that runs is followed, see `operators`.)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import torch
from torch import nn

from hfcompress.calibration.batches import Batch, run_on
from hfcompress.calibration.hooks import evaluating, tensors_of
from hfcompress.errors import ModelError, TargetError, first_line
from hfcompress.measure.macs import countable, frozen
from hfcompress.shrinking.channels.groups import ChannelGraph, find_groups
from hfcompress.shrinking.channels.labels import Labels, Marks
from hfcompress.shrinking.channels.movements import Split, SplitPlace, Splits
from hfcompress.shrinking.channels.operators import CallRecord, ChannelTracer, Trail
from hfcompress.shrinking.channels.sides import (
    own_tensors,
    removable_dimensions,
    tensors_by_name,
)
from hfcompress.shrinking.outputs import rows_of, set_training


def trace(
    model: nn.Module, batch: Batch, choices: Mapping[SplitPlace, int] | None = None
) -> ChannelGraph:
    """Run a model and find its groups of channels; its outputs' own channels are in none.

    It is run in eval mode and, where that works, in train mode, and must work in both afterwards.

    Args:
        model: any module; left as it was.
        batch: one row or more, labels not used.
        choices: other dimensions to narrow than the longest, where a view splits channels.

    Raises:
        ModelError: the model cannot be run.
        TargetError: it has no channels that can be removed.
    """
    work = copy.deepcopy(model)
    trail = Trail()
    marks = _label_tensors(work, trail.labels)
    with evaluating(work):
        try:
            record, splits = _follow(work, rows_of(batch, 1), marks, trail, choices or {})
        except Exception as error:  # whatever a forward raises is about this model
            raise ModelError(
                f"{type(model).__name__} cannot be traced on a calibration row: {first_line(error)}"
            ) from error
        in_training = replace(trail, products=[], uses={})
        set_training(work)
        with suppress(Exception):  # whatever is raised: then it has no train mode to keep
            splits += _follow(work, rows_of(batch, 2), marks, in_training, choices or {})[1]
    graph = find_groups(model, marks, trail, record, splits)
    if not graph.groups:
        raise TargetError(f"{type(model).__name__} has no channels that can be removed")
    return graph


def _label_tensors(model: nn.Module, labels: Labels) -> dict[str, Marks]:
    """New labels for each dimension of parameters and buffers that could be narrowed."""
    allowed: dict[int, set[int]] = {}
    fixed = {
        id(tensor)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)  # it checks its own width
        for tensor in module.parameters()
    }
    for _, module, name, tensor in own_tensors(model):
        dims = set(removable_dimensions(module, name, tensor))
        allowed[id(tensor)] = allowed.get(id(tensor), dims) & dims
    return {
        name: {
            dim: labels.new(tensor.shape[dim])
            for dim in sorted(allowed[id(tensor)])
            if tensor.shape[dim] > 1 and id(tensor) not in fixed
        }
        for name, tensor in tensors_by_name(model).items()
    }


def _follow(
    model: nn.Module,
    inputs: Batch,
    marks: Mapping[str, Marks],
    trail: Trail,
    choices: Mapping[SplitPlace, int],
) -> tuple[CallRecord, list[Split]]:
    """Follow labels through one forward pass, and keep those that its results have."""
    by_tensor = {id(tensor): marks[name] for name, tensor in tensors_by_name(model).items()}
    record = CallRecord(model)
    splits = Splits(choices, record.path)
    tracer = ChannelTracer(trail, by_tensor, splits, record.note_norm)
    onednn = not any(isinstance(module, nn.RNNBase) for module in model.modules())
    with (
        frozen(model),
        countable(onednn),
        torch.random.fork_rng(devices=[]),
        record.watching(),
        tracer,
    ):
        result = run_on(model, inputs)
    tracer.tensors.freeze(tensors_of(result))
    return record, splits.found
