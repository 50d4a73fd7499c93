"""Find the weight matrices that can be pruned, the default targets, and why others are left out.

A target is a module with a ``weight``: a Linear, a convolution, or a `SharedWeight` for a
matrix that a larger module has under another name (attention's ``in_proj_weight``, the matrices
of an LSTM, a projection that is a bare parameter).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from hfcompress.errors import ModelError, TargetError
from hfcompress.measure.macs import is_weighted
from hfcompress.models.architectures import (
    default_targets,
    head_names,
    is_compressible,
    left_alone,
    matching_modules,
    without_adapters,
)

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Names of bare parameters that are matrices of a product, and of those that are not.
_PROJECTION = {"proj", "projection", "kernel", "weight", "weights", "matrix"}
_LETTERS = re.compile(r"w[qkvoi0-9]*|[qkvor]")
_TABLE = {"embed", "embeds", "embedding", "embeddings", "position", "positional", "pos", "token",
          "tokens", "table", "bias", "norm", "scale", "codebook"}  # fmt: skip
EXCLUDED = "excluded"
UNKNOWN = "a bare parameter that may not be a projection; name it in targets to prune it"


class SharedWeight(nn.Module):
    """A matrix (and bias) of a larger module, with the interface of an ``nn.Linear``.

    Args:
        weight: the parameter itself, outputs first; what is written into it changes the owner.
        bias: the parameter that is added to the product, if there is one.
        owner: the module that has it as a parameter.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, owner: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.owner = (owner,)  # in a tuple: not a submodule

    def forward(self, inputs: Tensor) -> Tensor:
        """As ``nn.Linear``."""
        return linear(inputs, self.weight, self.bias)


@dataclass(frozen=True)
class Targets:
    """What is pruned and what is not.

    Attributes:
        modules: the targets, by name, in model order.
        untouched: weight matrices that are excluded, by default or by name -> why.
        matrices: all weight matrices, by name.
    """

    modules: dict[str, nn.Module]
    untouched: dict[str, str]
    matrices: dict[str, nn.Module]


def select_targets(
    model: nn.Module,
    targets: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> dict[str, nn.Module]:
    """The targets that patterns name, see `find_targets`."""
    return find_targets(model, targets, exclude).modules


def find_targets(
    model: nn.Module, targets: Sequence[str] | None, exclude: Sequence[str] | None
) -> Targets:
    """The targets that patterns name, and the reasons why other matrices are not targets.

    Args:
        model: any module.
        targets: globs over names of modules or parameters, last components or class names; None
            takes every weight matrix but embeddings, pooler and head. Only a pattern that fits no
            matrix names embedding tables.
        exclude: patterns to take out again.

    Raises:
        TargetError: a pattern matches nothing, or nothing is left.
        ModelError: the weight of a target is computed from other tensors.
    """
    matrices = weight_matrices(model)
    reasons = default_exclusions(model, matrices) if targets is None else {}
    if targets is None:
        chosen = {name: matrices[name] for name in matrices if name not in reasons}
    else:
        chosen = _named(model, matrices, targets)
    dropped = _matching(model, chosen | matrices, exclude or ())
    reasons |= {name: EXCLUDED for name in chosen if name in dropped}
    left = {name: module for name, module in chosen.items() if name not in dropped}
    if not left:
        raise TargetError(
            f"{type(model).__name__} has no module left to compress; "
            f"its compressible modules are: {', '.join(matrices) or 'none'}"
        )
    for name, module in left.items():
        refuse_computed_weight(name, module)
    untouched = {name: reason for name, reason in reasons.items() if name not in left}
    return Targets(left, untouched, matrices)


def _named(
    model: nn.Module, matrices: dict[str, nn.Module], targets: Sequence[str]
) -> dict[str, nn.Module]:
    """The matrices that patterns name, and the tables that those name which fit no matrix."""
    everything = tables(model, matrices) | matrices
    hits: set[str] = set()
    for pattern in targets:
        try:
            hits |= _matching(model, matrices, [pattern]).keys()
        except TargetError:
            hits |= _matching(model, everything, [pattern]).keys()
    return {name: module for name, module in everything.items() if name in hits}


def tables(model: nn.Module, matrices: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The embedding tables whose weight is none of the matrices', by name."""
    taken = {id(module._parameters.get("weight")) for module in matrices.values()}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and id(module.weight) not in taken
    }


def prunable(model: nn.Module) -> dict[str, nn.Module]:
    """All that `find_targets` may find: weight matrices, and the tables that must be named."""
    matrices = weight_matrices(model)
    return tables(model, matrices) | matrices


def weight_matrices(model: nn.Module) -> dict[str, nn.Module]:
    """Every weight matrix of a model by name, in model order, without embeddings, tables
    and the adapters of peft.

    Tied weights appear once, under the first name.
    """
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if "parametrizations" in name.split("."):
            continue
        if is_weighted(module) or isinstance(module, TRANSPOSED):
            parameter = module._parameters.get("weight")  # None where it is computed
            if parameter is None or id(parameter) not in seen:
                seen.add(id(parameter))
                found[name] = module
            continue
        for key, weight, bias in _matrices_of(module):
            if id(weight) not in seen:
                seen.add(id(weight))
                found[f"{name}.{key}" if name else key] = SharedWeight(weight, bias, module)
    return without_adapters(model, found)


def _matrices_of(module: nn.Module) -> Iterator[tuple[str, Tensor, nn.Parameter | None]]:
    """Name, weight and bias of each matrix of a module that is neither Linear nor convolution."""
    own, biases = _tensors_of(module), module._parameters
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return
    if isinstance(module, nn.MultiheadAttention):
        for key in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            if key in own:
                yield key, own[key], biases["in_proj_bias"] if key == "in_proj_weight" else None
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        for key, value in own.items():
            if value.dim() == 2:
                yield key, value, biases.get(key.replace("weight", "bias"))
    elif isinstance(module, nn.Bilinear) or not type(module).__module__.startswith("torch.nn."):
        for key, value in own.items():
            table = not _TABLE.isdisjoint(_words(key))
            if value.dim() >= 2 and min(value.shape[-2:]) > 1 and not table:
                yield key, value, None


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters, and in the place of some the tensors computed from them."""
    found: dict[str, Tensor] = {k: v for k, v in module._parameters.items() if v is not None}
    for key in list(found):
        computed = vars(module).get(key.rpartition("_")[0])  # of weight_orig, weight_g, weight_v
        if isinstance(computed, Tensor):
            del found[key]
            found[key.rpartition("_")[0]] = computed
    for key in getattr(module, "parametrizations", {}):
        found[key] = getattr(module, key)
    return found


def default_exclusions(model: nn.Module, matrices: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the matrices that are not default targets, each with the reason."""
    head, defaults = head_names(model, matrices), default_targets(model)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found: dict[str, str] = {}
    for name, module in matrices.items():
        parameter = module._parameters.get("weight")
        if name in head:
            found[name] = "head"
        elif (word := left_alone(name)) is not None:
            found[name] = word
        elif id(parameter) in embeddings:
            found[name] = "tied to an embedding"
        elif isinstance(module, SharedWeight) and not _is_projection(name, module):
            found[name] = UNKNOWN
        elif is_compressible(module) and parameter is not None and name not in defaults:
            found[name] = "left alone by default"
    return found


def _is_projection(name: str, module: SharedWeight) -> bool:
    known = isinstance(module.owner[0], (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase))
    words = _words(name.rpartition(".")[2])
    return known or not _PROJECTION.isdisjoint(words) or any(map(_LETTERS.fullmatch, words))


def _words(name: str) -> set[str]:
    return set(name.lower().split("_"))


def _matching(
    model: nn.Module, matrices: dict[str, nn.Module], patterns: Sequence[str]
) -> dict[str, nn.Module]:
    """As `matching_modules`; a pattern may also name the owner of a `SharedWeight`."""
    names = {id(module): name for name, module in model.named_modules()}
    owners: dict[str, nn.Module] = {}
    for module in matrices.values():
        if isinstance(module, SharedWeight) and names[id(module.owner[0])]:
            owners[names[id(module.owner[0])]] = module.owner[0]
    hits = matching_modules({**matrices, **owners}, patterns)
    return {
        name: module
        for name, module in matrices.items()
        if name in hits or (isinstance(module, SharedWeight) and module.owner[0] in hits.values())
    }


def literal(name: str) -> str:
    """A pattern that matches this name only: ``conv1`` is a last component elsewhere, too."""
    return f"={name}"


def refuse_computed_weight(name: str, module: nn.Module) -> None:
    """Refuse a module whose weight is computed in each forward pass: zeros in it would be lost.

    Raises:
        ModelError: it is; the message names the call that makes it a parameter again.
    """
    holder = module.owner[0] if isinstance(module, SharedWeight) else module
    path = name.rpartition(".")[0] if isinstance(module, SharedWeight) else name
    key = name.rpartition(".")[2] if isinstance(module, SharedWeight) else "weight"
    if isinstance(holder._parameters.get(key), nn.Parameter):
        return
    raise ModelError(
        f"{path}.{key} is computed from other tensors and cannot hold zeros; "
        f"call {_removal(holder, path, key)} first"
    )


def _removal(module: nn.Module, name: str, key: str) -> str:
    """The call that makes a computed weight a plain parameter."""
    where = f"model.get_submodule({name!r})"
    if parametrize.is_parametrized(module, key):
        return f"torch.nn.utils.parametrize.remove_parametrizations({where}, {key!r})"
    hooks = {type(hook).__name__ for hook in module._forward_pre_hooks.values()}
    if "WeightNorm" in hooks:
        return f"torch.nn.utils.remove_weight_norm({where}, {key!r})"
    if "SpectralNorm" in hooks:
        return f"torch.nn.utils.remove_spectral_norm({where}, {key!r})"
    if any(
        isinstance(h, torch_prune.BasePruningMethod) for h in module._forward_pre_hooks.values()
    ):
        return f"torch.nn.utils.prune.remove({where}, {key!r})"
    return f"{where}.{key} = torch.nn.Parameter(...)"
