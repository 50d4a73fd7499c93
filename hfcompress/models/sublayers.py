"""Where each layer's attention heads and feed-forward neurons are, read from the families' table.

A *sublayer* is attention or the feed-forward part of one layer. Its *units* (heads, or neurons)
are computed by one or several projections, its *producers*, and mixed back into the residual
stream by its output projection: removing a unit removes its rows of the producers and its columns
of the output projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from hfcompress.errors import TargetError
from hfcompress.models.architectures import FAMILIES, Family, blocks, family_of, stage_of
from hfcompress.models.matrices import weight_matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Kind = Literal["heads", "neurons"]


@dataclass(frozen=True)
class Sublayer:
    """Attention or the feed-forward part of one layer.

    Attributes:
        name: path of the output projection, which names the sublayer.
        layer: path of the layer.
        attention: path of the output projection of the layer's attention.
        kind: what its units are.
        producers: paths of the projections whose outputs are the units.
        size: columns of the output projection that belong to one unit.
        copies: how often the units occur in a producer's outputs, one after the other: 3 for a
            fused query, key and value, 2 for a gated feed-forward part, else 1.
        prenorm: whether the residual stream is normalised before the sublayer (or after it).
        removable: whether units may be removed in this family.
        tables: paths of parameters whose last dimension counts the units.
        share: tokens that pass, as a share of those that pass the first layer.
        window: tokens that each attends to; None for all.
    """

    name: str
    layer: str
    attention: str
    kind: Kind
    producers: tuple[str, ...]
    size: int
    copies: int
    prenorm: bool
    removable: bool
    tables: tuple[str, ...] = ()
    share: float = 1.0
    window: int | None = None

    def out(self, model: nn.Module) -> nn.Module:
        """The output projection."""
        return model.get_submodule(self.name)

    def units(self, model: nn.Module) -> int:
        """How many units there are now."""
        return weight_matrix(self.out(model)).shape[1] // self.size

    def columns(self, keep: Tensor) -> Tensor:
        """Columns of the output projection that belong to some units."""
        return (keep[:, None] * self.size + torch.arange(self.size)).flatten()

    def rows(self, keep: Tensor, units: int) -> Tensor:
        """Rows of each producer that belong to some units.

        Args:
            keep: the units' numbers.
            units: how many there are now.
        """
        columns = self.columns(keep)
        offsets = torch.arange(self.copies) * units * self.size
        return (offsets[:, None] + columns).flatten()


def sublayers(model: nn.Module) -> list[Sublayer]:
    """Every sublayer, in the order in which data pass them.

    Raises:
        TargetError: the model's family is not in the table.
    """
    family = known_family(model)
    found: list[Sublayer] = []
    for layer in blocks(model):
        found.append(_sublayer(model, family, layer, "heads"))
        found.append(_sublayer(model, family, layer, "neurons"))
    return found


def known_family(model: nn.Module) -> Family:
    """The table's entry.

    Raises:
        TargetError: there is none.
    """
    family = family_of(model)
    if family is None:
        name = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise TargetError(
            f"where the heads and neurons of {name!r} are is not known; known families are "
            f"{', '.join(sorted(FAMILIES))}; for two Linears of your own there is "
            f"prune_layer_neurons"
        )
    return family


def head_size(model: nn.Module, layer: str | None = None) -> int:
    """Width of one attention head, of a layer where the family's layers differ."""
    config = cast("PreTrainedModel", model).config
    family = family_of(model)
    if layer is not None and family is not None and family.staged:
        attention = model.get_submodule(f"{layer}.{family.query.rpartition('.')[0]}")
        return cast(int, attention.head_dim)
    own = getattr(config, "head_dim", None)
    return int(own or config.hidden_size // config.num_attention_heads)


def _sublayer(model: nn.Module, family: Family, layer: str, kind: Kind) -> Sublayer:
    if kind == "heads":
        paths: Sequence[str] = (family.query, family.key, family.value)
        out, size, removable = family.out, head_size(model, layer), family.free_heads
        copies = 3 // len(set(paths))
    else:
        paths, out, size, removable = (family.ffn_in,), family.ffn_out, 1, True
        copies = 2 if family.gated else 1
    tables = (f"{layer}.{family.head_table}",) if family.head_table and kind == "heads" else ()
    window = getattr(model.config, family.window) ** 2 if family.window else None
    return Sublayer(
        name=f"{layer}.{out}",
        layer=layer,
        attention=f"{layer}.{family.out}",
        kind=kind,
        producers=tuple(f"{layer}.{path}" for path in dict.fromkeys(paths)),
        size=size,
        copies=copies,
        prenorm=family.prenorm,
        removable=removable,
        tables=tables,
        share=0.25 ** stage_of(model, layer),
        window=window,
    )
