"""How a model is set up while it trains, and set back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel


@contextmanager
def dropout(model: nn.Module, probability: float | None) -> Iterator[None]:
    """All dropout layers at one probability; None leaves each at its own."""
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    before = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = layer.p if probability is None else probability
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.p = own


@contextmanager
def frozen_embeddings(model: PreTrainedModel, freeze: bool) -> Iterator[None]:
    """Embedding tables without gradients: they hold half of a small model's parameters, and no
    weight that is pruned."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    held = [weight for table in tables for weight in table.parameters() if weight.requires_grad]
    try:
        for weight in held if freeze else []:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in held:
            weight.requires_grad_(True)


@contextmanager
def fast_attention(model: PreTrainedModel) -> Iterator[None]:
    """Plain attention on a CPU, where torch's fused one makes the backward pass slower."""
    before = model.config._attn_implementation
    change = before == "sdpa" and not torch.accelerator.is_available()
    try:
        if change:
            model.set_attn_implementation("eager")
        yield
    finally:
        if change:
            model.set_attn_implementation(before)


@contextmanager
def memory_format(model: nn.Module, channels_last: bool) -> Iterator[None]:
    """Convolutions in channels-last order while they train; plain order is what is saved."""
    formats = (torch.channels_last, torch.contiguous_format)
    try:
        if channels_last:
            _lay_out(model, formats[0])
        yield
    finally:
        if channels_last:
            _lay_out(model, formats[1])


def _lay_out(model: nn.Module, memory_format: torch.memory_format) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
