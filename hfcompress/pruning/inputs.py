"""Which targets calibration knows something about, and how hooks see the inputs of attention.

torch computes the whole of ``nn.MultiheadAttention``, or of an LSTM, in one function, to which it
passes the weights; `projections_called` makes it call its matrices as modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import multi_head_attention_forward

from hfcompress.calibration.batches import Calibration
from hfcompress.calibration.hooks import call_order, evaluating
from hfcompress.pruning.config import GRADIENT_METHODS, PruningConfig
from hfcompress.pruning.recurrent import call_cell, call_in_steps, can_step
from hfcompress.pruning.targets import TRANSPOSED, SharedWeight

Projections = Mapping[str, SharedWeight]
"""``in_proj_weight``, or ``q_proj_weight``, ``k_proj_weight`` and ``v_proj_weight``."""


@contextmanager
def projections_called(model: nn.Module, targets: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, attention and recurrent modules of a model call their matrices, by hooks visible.

    Args:
        model: these modules compute the same as before, by rounding.
        targets: the `SharedWeight` of a matrix among them is the module that is called. Recurrent
            modules without such a target are left as they are, because steps take long.
    """
    parts = {
        module: _projections(module, targets)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
    }
    # A projection that other tensors compute is not a parameter; its module is not changed.
    calls: dict[nn.Module, Callable[..., object]] = {
        module: partial(_attend, module, shared)
        for module, shared in parts.items()
        if len(shared) in (1, 3)
    }
    calls |= _recurrent_calls(targets)
    found = list(calls)
    if not found:
        yield
        return
    fast = torch.backends.mha.get_fastpath_enabled()
    own = [vars(module).get("forward") for module in found]  # set by whoever wraps modules
    # The fast path of nn.TransformerEncoderLayer calls no submodule.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for module in found:
            vars(module)["forward"] = calls[module]
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, forward in zip(found, own, strict=True):
            del vars(module)["forward"]
            if forward is not None:
                vars(module)["forward"] = forward


def _recurrent_calls(targets: Mapping[str, nn.Module]) -> dict[nn.Module, Callable[..., object]]:
    """What takes the place of the forward of each recurrent module with a target in it."""
    shared = [target for target in targets.values() if isinstance(target, SharedWeight)]
    known = {id(target.weight): target for target in shared}
    found: dict[nn.Module, Callable[..., object]] = {}
    for owner in dict.fromkeys(target.owner[0] for target in shared):
        if not can_step(owner):
            continue
        own = {
            key: known.get(id(weight))
            or SharedWeight(weight, owner._parameters.get(key.replace("weight", "bias")), owner)
            for key, weight in owner._parameters.items()
            if weight is not None and key.startswith("weight_")
        }
        if isinstance(owner, nn.RNNBase):
            found[owner] = partial(call_in_steps, owner, own)
        elif isinstance(owner, nn.RNNCellBase) and own.keys() == {"weight_ih", "weight_hh"}:
            found[owner] = partial(call_cell, owner, own)
    return found


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


def unknown_inputs(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    config: PruningConfig,
    calibration: Calibration | None,
) -> dict[str, str]:
    """Return the targets that calibration cannot inform a method about, each with the reason.

    Args:
        model: run on the first batch.
        modules: the targets.
        config: the method and its options.
        calibration: examples; None where the config needs none.

    Raises:
        CalibrationError: the method needs the loss, and the batches have no labels.
    """
    if calibration is None:
        return {}
    with projections_called(model, modules):
        return _unknown(model, modules, config, calibration)


def _unknown(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    config: PruningConfig,
    calibration: Calibration,
) -> dict[str, str]:
    found: dict[str, str] = {}
    if config.needs_inputs:
        for name, module in modules.items():
            if not _is_called(module):
                kind = type(module.owner[0] if isinstance(module, SharedWeight) else module)
                found[name] = (
                    f"the inputs of this part of {kind.__name__} are not known, and method "
                    f"{config.method} with these options needs them; method magnitude prunes it"
                )
        rest = {name: module for name, module in modules.items() if name not in found}
        called = calibration.kept(("called", *rest), lambda: _called(model, rest, calibration))
        idle = "it is never called in a forward pass"
        found |= {name: idle for name in rest if name not in called}
    if config.method in GRADIENT_METHODS:
        used = calibration.kept(("used", *modules), lambda: calibration.uses(model, modules))
        found |= {name: "the loss does not depend on it" for name in modules if name not in used}
    return found


def _called(
    model: nn.Module, modules: Mapping[str, nn.Module], calibration: Calibration
) -> set[str]:
    """The modules that a forward pass on the first batch calls, by name."""
    with evaluating(model):
        groups = call_order(lambda: calibration.run(model, 0), modules)
    return {name for group in groups for name in group.names}


def _is_called(module: nn.Module) -> bool:
    """Whether a hook can see the inputs of a target (see `projections_called`)."""
    if isinstance(module, SharedWeight):
        owner = module.owner[0]
        return isinstance(owner, nn.MultiheadAttention) or can_step(owner)
    return not isinstance(module, (*TRANSPOSED, nn.Embedding, nn.EmbeddingBag))
