"""Make ``nn.MultiheadAttention`` call its projections as modules, so that hooks see their inputs.

torch computes the whole attention in one function, to which it passes the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import multi_head_attention_forward

from hfcompress.pruning.targets import SharedWeight

Projections = Mapping[str, SharedWeight]
"""``in_proj_weight``, or ``q_proj_weight``, ``k_proj_weight`` and ``v_proj_weight``."""


@contextmanager
def projections_called(model: nn.Module, targets: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, each ``nn.MultiheadAttention`` of a model calls its projections, by hooks visible.

    Args:
        model: its attention modules compute the same as before, by rounding.
        targets: the `SharedWeight` of a projection among them is the module that is called.
    """
    found = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    fast = torch.backends.mha.get_fastpath_enabled()
    if found:  # the fast path of nn.TransformerEncoderLayer calls no submodule
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        for module in found:
            module.forward = partial(_attend, module, _projections(module, targets))  # type: ignore[method-assign]
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module in found:
            vars(module).pop("forward", None)


def _projections(module: nn.MultiheadAttention, targets: Mapping[str, nn.Module]) -> Projections:
    shared = {
        id(target.weight): target for target in targets.values() if isinstance(target, SharedWeight)
    }
    found: dict[str, SharedWeight] = {}
    for key in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        weight = module._parameters.get(key)
        if weight is not None:
            bias = module._parameters["in_proj_bias"] if key == "in_proj_weight" else None
            found[key] = shared.get(id(weight)) or SharedWeight(weight, bias, module)
    return found


def _attend(
    module: nn.MultiheadAttention,
    projections: Projections,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As ``nn.MultiheadAttention.forward``."""
    swaps = query.dim() == 3 and module.batch_first  # torch's function takes the length first
    inputs = _batch_first((query, key, value), query.dim() == 3 and not module.batch_first)
    q, k, v = (
        part.transpose(0, 1) if query.dim() == 3 else part
        for part in _project(module, projections, inputs)
    )
    identity = torch.eye(module.embed_dim, dtype=q.dtype, device=q.device)
    mixed, weights = multi_head_attention_forward(
        q, k, v, module.embed_dim, module.num_heads, None, None, module.bias_k, module.bias_v,
        module.add_zero_attn, module.dropout, identity, None, training=module.training,
        key_padding_mask=key_padding_mask, need_weights=need_weights, attn_mask=attn_mask,
        use_separate_proj_weight=True, q_proj_weight=identity, k_proj_weight=identity,
        v_proj_weight=identity, average_attn_weights=average_attn_weights, is_causal=is_causal,
    )  # fmt: skip
    batched = mixed.transpose(0, 1) if query.dim() == 3 else mixed
    output: Tensor = module.out_proj(batched)
    return output if swaps or query.dim() == 2 else output.transpose(0, 1), weights


def _batch_first(inputs: tuple[Tensor, ...], swap: bool) -> tuple[Tensor, ...]:
    """Batch x length x features; one tensor that is given three times stays one."""
    if not swap:
        return inputs
    swapped = {id(tensor): tensor.transpose(0, 1) for tensor in inputs}
    return tuple(swapped[id(tensor)] for tensor in inputs)


def _project(
    module: nn.MultiheadAttention, projections: Projections, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Query, key and value."""
    fused = projections.get("in_proj_weight")
    if fused is not None:
        once = {id(tensor): fused(tensor).chunk(3, -1) for tensor in inputs}
        return tuple(once[id(tensor)][part] for part, tensor in enumerate(inputs))
    parts = [projections[f"{part}_proj_weight"](x) for part, x in zip("qkv", inputs, strict=True)]
    bias = module._parameters["in_proj_bias"]
    if bias is None:
        return tuple(parts)
    return tuple(part + share for part, share in zip(parts, bias.chunk(3), strict=True))
