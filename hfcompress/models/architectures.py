"""The one file that knows model families: which modules can be compressed, and where they are.

Everything that depends on how a family names its modules is in the table `FAMILIES`. A model of an
unknown family works, too: its repeated layers are the heaviest ``nn.ModuleList``.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn
from typing_extensions import TypeIs

from hfcompress.config import nearest
from hfcompress.errors import TargetError
from hfcompress.models.matrices import weight_matrix
from hfcompress.utils import is_conv1d, is_pretrained, unwrapped

if TYPE_CHECKING:
    from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Family:
    """Where one family keeps its parts.

    Attributes:
        layers: path of the repeated layers, from the base model; ``*`` stands for each stage of a
            family whose layers form stages, with a quarter of the tokens in each.
        query, key, value, out: paths of the attention projections, from a layer; a family with a
            fused projection gives the same path three times.
        ffn_in, ffn_out: paths of the feed-forward projections, from a layer.
        gated: the first half of ``ffn_in``'s outputs is multiplied with the second half.
        heads: the config's field with the number of attention heads.
        ffn_width: the config's field with the number of feed-forward neurons.
        prenorm: each sublayer reads the normalised residual stream; else the sum is normalised.
        free_heads: attention reads the number of heads from the width of its projections, so
            that a layer can have fewer than the config says.
        head_table: path of a parameter from a layer whose last dimension counts heads, or none.
        window: the config's field with the side of the windows inside which tokens attend, of
            a family whose attention has them: it sees tokens in the windows' order.
        between: path from a stage of what its last layer's states pass on their way out, or none.
    """

    layers: str
    query: str
    key: str
    value: str
    out: str
    ffn_in: str
    ffn_out: str
    gated: bool = False
    heads: str = "num_attention_heads"
    ffn_width: str = "intermediate_size"
    prenorm: bool = False
    free_heads: bool = True
    head_table: str = ""
    window: str = ""
    between: str = ""

    @property
    def staged(self) -> bool:
        """Whether layers form stages."""
        return "*" in self.layers


_BERT = Family(
    layers="encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    out="attention.output.dense",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
)
_VIT = Family(
    layers="layers",
    query="attention.q_proj",
    key="attention.k_proj",
    value="attention.v_proj",
    out="attention.o_proj",
    ffn_in="mlp.fc1",
    ffn_out="mlp.fc2",
    prenorm=True,
)

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "distilbert": Family(
        layers="transformer.layer",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        out="attention.out_lin",
        ffn_in="ffn.lin1",
        ffn_out="ffn.lin2",
        heads="n_heads",
        ffn_width="hidden_dim",
    ),
    "mpnet": Family(
        layers="encoder.layer",
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        out="attention.attn.o",
        ffn_in="intermediate.dense",
        ffn_out="output.dense",
        free_heads=False,  # position biases are tables by head
    ),
    "deberta-v2": Family(
        layers="encoder.layer",
        query="attention.self.query_proj",
        key="attention.self.key_proj",
        value="attention.self.value_proj",
        out="attention.output.dense",
        ffn_in="intermediate.dense",
        ffn_out="output.dense",
        free_heads=False,  # it reshapes by the config's number of heads
    ),
    "modernbert": Family(
        layers="layers",
        query="attn.Wqkv",
        key="attn.Wqkv",
        value="attn.Wqkv",
        out="attn.Wo",
        ffn_in="mlp.Wi",
        ffn_out="mlp.Wo",
        gated=True,
        prenorm=True,
    ),
    **dict.fromkeys(("vit", "deit"), _VIT),
    "swin": replace(
        _VIT,
        layers="encoder.layers.*.blocks",
        head_table="attention.relative_position_bias.relative_position_bias_table",
        window="window_size",
        between="downsample",
    ),
    "beit": replace(_VIT, free_heads=False),  # position biases are tables by head
    "gpt2": Family(
        layers="h",
        query="attn.c_attn",
        key="attn.c_attn",
        value="attn.c_attn",
        out="attn.c_proj",
        ffn_in="mlp.c_fc",
        ffn_out="mlp.c_proj",
        heads="n_head",
        ffn_width="n_inner",
        prenorm=True,
        free_heads=False,  # it splits the fused projection by a size of its own
    ),
}
"""Family by ``model.config.model_type``."""

WIDTH_PARAMETERS = {
    ("ConvNextLayer", "layer_scale_parameter"),
    ("SwinRelativePositionBias", "relative_position_bias_table"),
}
"""Class and parameter, where a family's own module holds one that is as wide as channels or heads
are many: it is cut with them, and a checkpoint records its shape."""

_LEFT_ALONE = re.compile(  # names that are not default targets (q_head is a target)
    r"embed|pooler|classifier|(?<![a-zA-Z])(?<!(?<![a-z])[qkvo]_)(?<!query_)(?<!key_)(?<!value_)"
    r"(?<!attn_)(?<!attention_)(?<!multi_)heads?(?![a-z])"
)


def family_of(model: nn.Module) -> Family | None:
    """The table's entry for a model, or None for a family that is not in the table."""
    return FAMILIES.get(getattr(getattr(model, "config", None), "model_type", ""))


def is_compressible(module: object) -> TypeIs[nn.Linear | nn.Conv2d | Conv1D]:
    """Whether a module is of a class that holds a compressible weight."""
    return isinstance(module, (nn.Linear, nn.Conv2d)) or is_conv1d(module)


def compressible_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every ``nn.Linear``, ``nn.Conv2d`` and transformers ``Conv1D``, by name, in model order.

    Modules that share one weight (tied weights) appear once, under the first name.
    """
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if is_compressible(module) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            found[name] = module
    return found


def default_targets(model: nn.Module) -> dict[str, nn.Module]:
    """What compression works on when the user names no targets.

    The compressible modules without embeddings (patch embeddings too), pooler, head, classifier and
    the adapters of peft. For a transformers model all that is outside the base model is head; for
    any other model the last ``nn.Linear`` is. A weight that is tied to an embedding is one.
    """
    modules = without_adapters(model, compressible_modules(model))
    outside = head_names(model, modules)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return {
        name: module
        for name, module in modules.items()
        if name not in outside and not left_alone(name) and id(module.weight) not in embeddings
    }


def select_modules(
    model: nn.Module,
    targets: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> dict[str, nn.Module]:
    """The compressible modules that patterns name.

    A pattern is a glob over the whole module name (``"*.ffn.*"``), a bare last component
    (``"classifier"``) or a class name (``"Linear"``).

    Args:
        model: any module.
        targets: patterns to take; None takes `default_targets`.
        exclude: patterns to take out again.

    Raises:
        TargetError: a pattern matches no compressible module (the nearest names are given), or
            nothing is left.
    """
    modules = without_adapters(model, compressible_modules(model))
    chosen = default_targets(model) if targets is None else matching_modules(modules, targets)
    dropped = matching_modules(modules, exclude or ())
    left = {name: module for name, module in chosen.items() if name not in dropped}
    if not left:
        raise TargetError(
            f"{type(model).__name__} has no module left to compress; "
            f"its compressible modules are: {', '.join(modules) or 'none'}"
        )
    return left


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The repeated layers of a model in the order in which data passes them, by name.

    Known families name them; for others they are the heaviest ``nn.ModuleList`` or
    ``nn.Sequential`` whose items hold compressible modules. Empty when there is none.
    """
    family = family_of(model)
    if family is not None:
        prefix = _base_path(model)
        path = f"{prefix}.{family.layers}" if prefix else family.layers
        before, star, after = path.partition(".*.")
        if not star:
            return dict(_children(path, model.get_submodule(path)))
        stages = _children(before, model.get_submodule(before))
        paths = [f"{stage}.{after}" for stage, _ in stages]
        return {n: m for path in paths for n, m in _children(path, model.get_submodule(path))}
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1
    ]
    lists = [(name, module) for name, module in lists if _weights_in(module)]
    if not lists:
        return {}
    # The outermost of equally heavy lists: one block should be a whole layer, not a part of it.
    name, heaviest = max(lists, key=lambda item: _weights_in(item[1]))
    return dict(_children(name, heaviest))


def stage_of(model: nn.Module, layer: str) -> int:
    """Number of the stage in which a layer (a name of `blocks`) stands; 0 without stages."""
    family = family_of(model)
    if family is None or not family.staged:
        return 0
    prefix = family.layers.partition(".*.")[0]
    return int(layer.partition(f"{prefix}.")[2].partition(".")[0])


def bridges(model: nn.Module) -> dict[str, nn.Module]:
    """What states pass behind the last layer of each stage, by that layer's name.

    It is called with the states and the layer's next argument (their height and width).
    """
    family = family_of(model)
    if family is None or not family.between:
        return {}
    found: dict[str, nn.Module] = {}
    last = {stage_of(model, layer): layer for layer in blocks(model)}
    for layer in last.values():
        stage = model.get_submodule(layer.rsplit(".", 2)[0])
        module = getattr(stage, family.between, None)
        if isinstance(module, nn.Module):
            found[layer] = module
    return found


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that compute attention, in layer order; the second of their outputs is the
    attention map, where the model runs with eager attention.

    Raises:
        TargetError: a family that is not in the table.
    """
    path = _known_family(model).query.rpartition(".")[0]
    return [block.get_submodule(path) for block in blocks(model).values()]


def value_projections(model: nn.Module) -> tuple[list[nn.Module], bool]:
    """The modules that compute the values, in layer order, and whether they are fused: the values
    are then the last third of their outputs.

    Raises:
        TargetError: a family that is not in the table.
    """
    family = _known_family(model)
    modules = [block.get_submodule(family.value) for block in blocks(model).values()]
    return modules, family.query == family.value


def _known_family(model: nn.Module) -> Family:
    family = family_of(model)
    if family is None:
        raise TargetError(
            f"where {type(model).__name__} keeps its attention is not known; "
            f"known families are: {', '.join(FAMILIES)}"
        )
    return family


def base_prefix(model: nn.Module) -> str:
    """Where the base model lies inside a model: ``"bert"``, or ``""`` for the base model itself."""
    if not is_pretrained(model):
        return ""
    prefix = model.base_model_prefix
    if prefix and hasattr(model, prefix):
        return prefix
    if type(model).__module__.startswith("transformers."):
        return ""
    inner = [name for name, module in model.named_modules() if name and is_pretrained(module)]
    outer = [name for name in inner if not any(name.startswith(f"{other}.") for other in inner)]
    return outer[0] if len(outer) == 1 else ""  # a class of the user's own may name it otherwise


def _base_path(model: nn.Module) -> str:
    """As `base_prefix`, where peft or ``torch.compile`` may have wrapped the model."""
    inner = unwrapped(model)
    outer = next((name for name, module in model.named_modules() if module is inner), "")
    return ".".join(part for part in (outer, base_prefix(inner)) if part)


def without_adapters(model: nn.Module, modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the modules without those that peft has added beside a model's own weights."""
    paths = [
        f"{name}.{part}.".lstrip(".")
        for name, module in model.named_modules()
        for part in getattr(module, "adapter_layer_names", ())
    ]
    return {name: m for name, m in modules.items() if not f"{name}.".startswith(tuple(paths))}


def head_names(model: nn.Module, modules: Mapping[str, nn.Module]) -> set[str]:
    """The modules that are the model's head."""
    if is_pretrained(unwrapped(model)):
        prefix = _base_path(model)
        return {name for name in modules if prefix and not name.startswith(f"{prefix}.")}
    linears = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    return set(linears[-1:]) if len(modules) > 1 else set()


def left_alone(name: str) -> str | None:
    """The word in a module's name for which it is not a default target, if there is one."""
    return found[0] if (found := _LEFT_ALONE.search(name)) else None


def matching_modules(
    modules: dict[str, nn.Module], patterns: Sequence[str]
) -> dict[str, nn.Module]:
    """Those modules that any of some patterns names, in their order.

    Args:
        modules: by name.
        patterns: each a glob over the name, a bare last component or a class name; or ``=`` and
            one whole name.

    Raises:
        TargetError: a pattern that matches nothing.
    """
    hits: set[str] = set()
    for pattern in patterns:
        found = {name for name, module in modules.items() if _matches(pattern, name, module)}
        if not found:
            known = [*modules, *{name.rpartition(".")[2] for name in modules}]
            known += sorted({type(module).__name__ for module in modules.values()})
            raise TargetError(f"pattern {pattern!r} matches no module{nearest(pattern, known)}")
        hits |= found
    return {name: module for name, module in modules.items() if name in hits}


def _matches(pattern: str, name: str, module: nn.Module) -> bool:
    if pattern.startswith("="):
        return name == pattern[1:]
    own = name.removesuffix(".base_layer")  # peft keeps a layer's own weight under this name
    names = (name, own, own.rpartition(".")[2], type(module).__name__)
    return any(fnmatch.fnmatchcase(candidate, pattern) for candidate in names)


def _children(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        yield (f"{path}.{name}" if path else name), child


def _weights_in(module: nn.Module) -> int:
    return sum(weight_matrix(item).numel() for item in compressible_modules(module).values())
