"""Cut a teacher's weights to a student's sizes: select and fold rows and columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfcompress.errors import ModelError
from hfcompress.models.architectures import blocks
from hfcompress.models.matrices import weight_matrix
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
    """Return the student's state dict, cut from the teacher's.

    Args:
        teacher: source of the weights.
        student: a model of the same class with the student's shapes.
        chosen: the teacher's layer for each of the student's.
        calibration: batches for folding narrower hidden states (see `FeatureFold`).

    Raises:
        ModelError: a weight of another shape that depends on neither the hidden size, the heads
            nor the neurons.
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


def copied_weights(
    teacher: PreTrainedModel, student: PreTrainedModel, chosen: Sequence[int]
) -> Weights:
    """Return the state dict of a student with some of the teacher's layers, in their sizes.

    Args:
        teacher: source of the weights.
        student: a model of the same class.
        chosen: the teacher's layer for each of the student's.
    """
    sources, weights = _sources(teacher, student, chosen), teacher.state_dict()
    return {name: weights[sources.get(name, name)].clone() for name in student.state_dict()}


def _sources(
    teacher: PreTrainedModel, student: PreTrainedModel, chosen: Sequence[int]
) -> dict[str, str]:
    """Map names of the student's layer weights to the teacher's."""
    from_layers, to_layers = list(blocks(teacher)), list(blocks(student))
    found = {}
    for name in student.state_dict():
        for place, number in enumerate(chosen):
            prefix = f"{to_layers[place]}."
            if name.startswith(prefix):
                found[name] = f"{from_layers[number]}.{name.removeprefix(prefix)}"
    return found


def _kept_features(teacher: PreTrainedModel, student: PreTrainedModel) -> Tensor | None:
    """Return the sorted indices of the kept hidden features; None if all are kept."""
    width = _hidden_size(student)
    if width == _hidden_size(teacher):
        return None
    return feature_norms(teacher).topk(width).indices.sort().values


def _hidden_size(model: PreTrainedModel) -> int:
    return int(getattr(model.config, "hidden_size"))  # noqa: B009  # untyped in transformers


def _kept_units(
    teacher: PreTrainedModel, student: PreTrainedModel, chosen: Sequence[int]
) -> dict[str, Tensor]:
    """Return the sorted indices of kept units for each teacher sublayer that drops some."""
    layers = list(blocks(teacher))
    used = {layers[number] for number in chosen}
    parts = [part for part in sublayers(teacher) if part.layer in used]
    scores = {part.name: unit_norms(teacher, part) for part in parts}
    if not known_family(teacher).free_heads:  # position tables per head are shared
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
    """Cuts the teacher's tensors to the student's shapes."""

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
        self.width = _hidden_size(teacher)
        self.query_scale = math.sqrt(head_size(teacher) / head_size(student))
        self.outs: dict[str, Sublayer] = {}
        self.producers: dict[str, Sublayer] = {}
        for part in sublayers(teacher):
            self.outs[part.name] = part
            self.producers |= dict.fromkeys(part.producers, part)

    def cut(self, name: str, like: Tensor) -> Tensor:
        """Return one of the teacher's tensors in the shape of ``like``."""
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
        """Drop the rows or columns of dropped heads and neurons; rescale queries."""
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
        """Fold the dropped features into a weight that reads hidden states."""
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
        if heads is not None and want == heads.numel():  # a position table per head
            return heads
        raise ModelError(
            f"cannot cut dimension {axis} of {name} from {have} to {want}; keep the teacher's size "
            f"there"
        )


# Ridge term as a fraction of the mean variance: with few rows, features of low variance would get
# huge coefficients.
_DAMPING = 0.01


@dataclass(frozen=True)
class FeatureFold:
    """The least-squares estimate of dropped features from kept ones, at one layer's input.

    ``x[gone] ~ coefficients @ x[kept] + offset``, the affine fold of 2602.05243. It turns a weight
    that reads x into one that reads ``x[kept]``.

    Attributes:
        kept, gone: indices of features.
        coefficients: float32 (gone, kept).
        offset: float32 (gone,).
    """

    kept: Tensor
    gone: Tensor
    coefficients: Tensor
    offset: Tensor

    def weight(self, weight: Tensor) -> Tensor:
        """Fold a weight (outputs, features) into one that reads kept features: (outputs, kept)."""
        return weight[:, self.kept] + weight[:, self.gone] @ self.coefficients.to(weight.dtype)

    def bias(self, bias: Tensor, weight: Tensor) -> Tensor:
        """Return the bias that belongs to the folded weight; ``weight`` is (outputs, features)."""
        return bias + weight[:, self.gone] @ self.offset.to(weight.dtype)


@torch.no_grad()
def collect_folds(
    model: nn.Module, kept: Tensor, batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, FeatureFold]:
    """Return a fold for each projection that reads hidden states, fitted on its actual inputs.

    Args:
        model: a model of a known family; run in evaluation mode.
        kept: indices of the kept features.
        batches: model inputs; padding does not count.

    Returns:
        Folds by module name.
    """
    moments: dict[str, _Moments] = {}
    handles = []
    current: dict[str, Tensor | None] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            states = args[0]
            mask = current["mask"]
            rows = states.flatten(0, -2) if mask is None else states[mask]
            moments.setdefault(name, _Moments()).add(rows.double().cpu())

        return keep

    for part in sublayers(model):
        for name in part.producers:
            handles.append(model.get_submodule(name).register_forward_pre_hook(record(name)))
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
    """First and second moments of rows, for a ridge regression."""

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
    """Return the importance of a sublayer's heads or neurons: norms of inputs times outputs.

    For heads only the value and output weights count.

    Returns:
        float32 (units,).
    """
    out = weight_matrix(sublayer.out(model)).float()
    rows = weight_matrix(model.get_submodule(sublayer.producers[-1])).float()
    if sublayer.kind == "heads":
        rows = rows[-out.shape[1] :]  # in fused projections the values are last
    written = out.square().sum(0).view(-1, sublayer.size).sum(1).sqrt()
    halves = rows.square().sum(1).view(-1, written.numel(), sublayer.size).sum(2).sqrt()
    return halves.prod(0) * written  # a gated neuron is the product of its two halves


@torch.no_grad()
def feature_norms(model: nn.Module) -> Tensor:
    """Return the importance of the hidden features over all layers.

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
    """Return the importance of each layer: the sum over its heads and neurons."""
    sums: dict[str, float] = {}
    for sublayer in sublayers(model):
        own = float(unit_norms(model, sublayer).sum())
        sums[sublayer.layer] = sums.get(sublayer.layer, 0.0) + own
    return list(sums.values())
