"""A teacher's weights at a student's sizes: which rows and columns stay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfcompress.errors import ModelError
from hfcompress.models.architectures import blocks, weight_matrix
from hfcompress.models.sublayers import Sublayer, head_size, known_family, sublayers

Weights = dict[str, Tensor]
Batch = Mapping[str, Tensor]


@torch.no_grad()
def folded_weights(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    chosen: Sequence[int],
    calibration: Sequence[Batch] | None = None,
) -> Weights:
    """The student's state dict, made from the teacher's.

    Args:
        teacher: where the weights come from.
        student: of the same class; says the shapes.
        chosen: the teacher's layer behind each of the student's.
        calibration: batches by which narrower hidden states are folded (see `FeatureFold`).

    Raises:
        ModelError: a weight of another shape that is not known to follow the hidden size, the
            heads or the neurons.
    """
    sources = _sources(teacher, student, chosen)
    hidden = _kept_features(teacher, student)
    units = _kept_units(teacher, student, chosen)
    folds: dict[str, FeatureFold] = {}
    if hidden is not None and calibration is not None:
        folds = collect_folds(teacher, hidden, calibration)
    cuts = _Cuts(teacher, student, hidden, units, folds)
    made = {}
    for name, like in student.state_dict().items():
        made[name] = cuts.cut(sources.get(name, name), like).to(like.dtype).clone()
    return made


def _sources(
    teacher: PreTrainedModel, student: PreTrainedModel, chosen: Sequence[int]
) -> dict[str, str]:
    """The student's names inside its layers -> the teacher's."""
    from_layers, to_layers = list(blocks(teacher)), list(blocks(student))
    found = {}
    for name in student.state_dict():
        for place, number in enumerate(chosen):
            prefix = f"{to_layers[place]}."
            if name.startswith(prefix):
                found[name] = f"{from_layers[number]}.{name.removeprefix(prefix)}"
    return found


def _kept_features(teacher: PreTrainedModel, student: PreTrainedModel) -> Tensor | None:
    """Numbers of the hidden features that stay, rising; None where all do."""
    width = int(cast(Any, student.config).hidden_size)
    if width == cast(Any, teacher.config).hidden_size:
        return None
    return feature_norms(teacher).topk(width).indices.sort().values


def _kept_units(
    teacher: PreTrainedModel, student: PreTrainedModel, chosen: Sequence[int]
) -> dict[str, Tensor]:
    """Numbers of the heads or neurons that stay, rising, by sublayer of the teacher; only those
    of which some go."""
    layers = list(blocks(teacher))
    used = {layers[number] for number in chosen}
    parts = [part for part in sublayers(teacher) if part.layer in used]
    scores = {part.name: unit_norms(teacher, part) for part in parts}
    if not known_family(teacher).free_heads:  # tables by head are shared or must fit
        heads = [part.name for part in parts if part.kind == "heads"]
        shared = torch.stack([scores[name] for name in heads]).sum(0)
        scores |= dict.fromkeys(heads, shared)
    widths = {part.kind: _width(student, part) // part.size for part in sublayers(student)}
    size = head_size(teacher)
    widths["heads"] = widths["heads"] * head_size(student) // size
    kept = {}
    for part in parts:
        keep = widths[part.kind]
        if keep < scores[part.name].numel():
            kept[part.name] = scores[part.name].topk(keep).indices.sort().values
    return kept


def _width(model: nn.Module, part: Sublayer) -> int:
    return weight_matrix(part.out(model)).shape[1]


class _Cuts:
    """Cuts one tensor after the other to the student's shape."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        hidden: Tensor | None,
        units: dict[str, Tensor],
        folds: dict[str, FeatureFold],
    ) -> None:
        self.teacher = teacher
        self.weights = teacher.state_dict()
        self.hidden, self.units, self.folds = hidden, units, folds
        self.width = int(cast(Any, teacher.config).hidden_size)
        self.query_scale = math.sqrt(head_size(teacher) / head_size(student))
        self.outs: dict[str, Sublayer] = {}
        self.producers: dict[str, Sublayer] = {}
        for part in sublayers(teacher):
            self.outs[part.name] = part
            self.producers |= dict.fromkeys(part.producers, part)

    def cut(self, name: str, like: Tensor) -> Tensor:
        """One of the teacher's tensors at the shape of ``like``."""
        module_name, _, kind = name.rpartition(".")
        weight: Tensor = self.weights[name]
        module = self.teacher.get_submodule(module_name)
        flipped = isinstance(module, Conv1D) and weight.dim() == 2
        if flipped:
            weight = weight.t()
        if kind in ("weight", "bias"):
            weight = self._folded(module_name, kind, weight)
            weight = self._units_cut(module_name, weight)
        weight = weight.t() if flipped else weight
        for axis, (have, want) in enumerate(zip(weight.shape, like.shape, strict=True)):
            if have != want:
                weight = weight.index_select(axis, self._axis(name, axis, have, want))
        return weight

    def _units_cut(self, module: str, weight: Tensor) -> Tensor:
        """Without the rows or columns of heads and neurons that go; queries at their new scale."""
        part = self.outs.get(module)
        if part is not None and weight.dim() == 2 and module in self.units:
            weight = weight[:, part.columns(self.units[module])]
        part = self.producers.get(module)
        if part is None:
            return weight
        if part.kind == "heads" and module == part.producers[0] and self.query_scale != 1:
            weight = weight.clone()
            weight[: weight.shape[0] // part.copies] *= self.query_scale
        if part.name in self.units:
            units = weight.shape[0] // (part.copies * part.size)
            weight = weight[part.rows(self.units[part.name], units)]
        return weight

    def _folded(self, module: str, kind: str, weight: Tensor) -> Tensor:
        """A weight that reads hidden states, with what the features that go told it."""
        fold = self.folds.get(module)
        if fold is None:
            return weight
        if kind == "weight":
            return fold.weight(weight)
        return fold.bias(weight, weight_matrix(self.teacher.get_submodule(module)))

    def _axis(self, name: str, axis: int, have: int, want: int) -> Tensor:
        if self.hidden is not None and have == self.width and want == self.hidden.numel():
            return self.hidden
        heads = next(
            (keep for part, keep in self.units.items() if self.outs[part].kind == "heads"), None
        )
        if heads is not None and want == heads.numel():  # a table of positions by head
            return heads
        raise ModelError(
            f"{name} has {have} values along dimension {axis} and the student needs {want}; it is "
            f"not known which to keep, so leave that size as the teacher's"
        )


# Share of the mean variance that is added to each feature's, so that features that hardly vary in
# few rows do not get wild coefficients.
_DAMPING = 0.01


@dataclass(frozen=True)
class FeatureFold:
    """The least-squares guess of the features that go from those that stay, at one layer's input.

    ``x[gone] ~ coefficients @ x[kept] + offset``, the affine fold of 2602.05243; it gives a weight
    that reads x a substitute that reads ``x[kept]`` only.

    Attributes:
        kept, gone: feature numbers.
        coefficients: float32 (gone, kept).
        offset: float32 (gone,).
    """

    kept: Tensor
    gone: Tensor
    coefficients: Tensor
    offset: Tensor

    def weight(self, weight: Tensor) -> Tensor:
        """A weight (outputs, features) as one that reads the kept features: (outputs, kept)."""
        return weight[:, self.kept] + weight[:, self.gone] @ self.coefficients.to(weight.dtype)

    def bias(self, bias: Tensor, weight: Tensor) -> Tensor:
        """The bias that goes with `weight`, which is given whole: (outputs, features)."""
        return bias + weight[:, self.gone] @ self.offset.to(weight.dtype)


@torch.no_grad()
def collect_folds(
    model: nn.Module, kept: Tensor, batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, FeatureFold]:
    """A fold for each projection that reads the hidden states, from the inputs it really gets.

    Args:
        model: a model of a known family; run in evaluation mode.
        kept: numbers of the features that stay.
        batches: model inputs; padding is left out.

    Returns:
        Folds by module name.
    """
    moments: dict[str, _Moments] = {}
    handles = []
    current: dict[str, Any] = {}

    def watch(name: str) -> Any:
        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            states = args[0]
            mask = current["mask"]
            rows = states.flatten(0, -2) if mask is None else states[mask]
            moments.setdefault(name, _Moments()).add(rows.double().cpu())

        return keep

    for part in sublayers(model):
        for name in part.producers:
            handles.append(model.get_submodule(name).register_forward_pre_hook(watch(name)))
    training = model.training
    model.eval()
    try:
        for batch in batches:
            mask = batch.get("attention_mask")
            current["mask"] = None if mask is None else mask.bool()
            model(**{name: value for name, value in batch.items() if name != "labels"})
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    return {name: moment.fold(kept) for name, moment in moments.items()}


class _Moments:
    """Sums over rows, from which a regression follows."""

    def __init__(self) -> None:
        self.products: Tensor | float = 0.0
        self.sums: Tensor | float = 0.0
        self.rows = 0

    def add(self, rows: Tensor) -> None:
        self.products = self.products + rows.t() @ rows
        self.sums = self.sums + rows.sum(0)
        self.rows += rows.shape[0]

    def fold(self, kept: Tensor) -> FeatureFold:
        assert isinstance(self.products, Tensor)
        assert isinstance(self.sums, Tensor)
        mean = self.sums / self.rows
        covariance = self.products / self.rows - mean[:, None] * mean
        gone = torch.ones(mean.numel(), dtype=torch.bool)
        gone[kept] = False
        others = gone.nonzero().flatten()
        inner = covariance[kept][:, kept]
        inner = inner + _DAMPING * inner.diagonal().mean() * torch.eye(kept.numel())
        coefficients = torch.linalg.solve(inner, covariance[kept][:, others]).t()
        offset = mean[others] - coefficients @ mean[kept]
        return FeatureFold(kept.cpu(), others, coefficients.float(), offset.float())


@torch.no_grad()
def unit_norms(model: nn.Module, sublayer: Sublayer) -> Tensor:
    """Importance of a sublayer's heads or neurons.

    Heads count what their values write; which tokens they attend to has no size.

    Returns:
        float32 (units,).
    """
    out = weight_matrix(sublayer.out(model)).float()
    rows = weight_matrix(model.get_submodule(sublayer.producers[-1])).float()
    if sublayer.kind == "heads":
        rows = rows[-out.shape[1] :]  # values come last where the projections are fused
    written = out.square().sum(0).view(-1, sublayer.size).sum(1).sqrt()
    halves = rows.square().sum(1).view(-1, written.numel(), sublayer.size).sum(2).sqrt()
    return halves.prod(0) * written  # a gated neuron is the product of its two halves


@torch.no_grad()
def feature_norms(model: nn.Module) -> Tensor:
    """Importance of the features of the hidden states, over all layers.

    Returns:
        float32 (hidden,).
    """
    written: list[Tensor] = []
    read: list[Tensor] = []
    for sublayer in sublayers(model):
        written.append(weight_matrix(sublayer.out(model)).float().square().sum(1))
        for name in sublayer.producers:
            read.append(weight_matrix(model.get_submodule(name)).float().square().sum(0))
    return torch.stack(written).sum(0).sqrt() * torch.stack(read).sum(0).sqrt()


def layer_norms(model: nn.Module) -> list[float]:
    """Importance of the layers: the sum over their heads and neurons."""
    sums: dict[str, float] = {}
    for sublayer in sublayers(model):
        own = float(unit_norms(model, sublayer).sum())
        sums[sublayer.layer] = sums.get(sublayer.layer, 0.0) + own
    return list(sums.values())
