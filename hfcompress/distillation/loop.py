"""``distill``: a student learns from a teacher, any modules on any loader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from hfcompress.config import nearest
from hfcompress.distillation.config import DistillationLossConfig
from hfcompress.distillation.layer_loss import LayerLoss
from hfcompress.distillation.layer_losses import HiddenDistance
from hfcompress.distillation.losses import DistillationLoss
from hfcompress.distillation.teacher_outputs import LayerStates
from hfcompress.errors import ConfigError, DataError, ModelError, TargetError, first_line
from hfcompress.inference import call_model, logits_in
from hfcompress.measure.macs import evaluation_mode
from hfcompress.tasks.loaders import Batch, Loader, named_batches
from hfcompress.training.loops import loss_of_logits, task_of, to_device
from hfcompress.training.outputs import no_label


@dataclass(frozen=True)
class DistillReport:
    """What `distill` did.

    Attributes:
        losses: mean loss of the rows in each epoch.
        steps: optimizer steps.
    """

    losses: tuple[float, ...]
    steps: int


def distill(
    teacher: nn.Module,
    student: nn.Module,
    loader: Loader,
    *,
    epochs: int = 1,
    temperature: float = 4.0,
    alpha: float = 0.5,
    features: Mapping[str, str] | None = None,
    features_weight: float = 1.0,
    features_distance: HiddenDistance = "normalized_mse",
    learning_rate: float = 1e-3,
    optimizer: torch.optim.Optimizer | None = None,
) -> DistillReport:
    """Train a student on what a teacher says of a loader's batches, in place::

        distill(teacher, student, loader, epochs=5, temperature=4, alpha=0.7,
                features={"conv2": "conv3"})

    The loss is ``alpha * soft + (1 - alpha) * hard`` (1503.02531), plus ``features_weight`` times
    the distance of the outputs of each pair of modules (1412.6550); where their widths differ, a
    linear map is learned and left behind.

    Args:
        teacher: not changed; in the mode that it was in.
        student: in eval mode afterwards.
        loader: as `hfcompress.tasks.loaders` reads it; labels are not needed with an alpha of 1.
        epochs: how often the loader is read. A generator, which is read once, is kept in memory.
        temperature: divides the logits of both in the soft loss.
        alpha: weight of the soft loss.
        features: student's module -> teacher's module, by the names of ``named_modules``.
        features_weight: weight of their distances.
        features_distance: which distance; maps of different sizes are pooled to one grid.
        learning_rate: of AdamW, with a cosine to 0.
        optimizer: one of your own in its place; its learning rate stays.

    Raises:
        ConfigError: a value out of range.
        TargetError: a module of ``features`` that is not there or gives no tensor.
        ModelError: student and teacher whose logits differ in shape.
        DataError: an empty loader, batches without labels where they are needed, or labels that do
            not fit.
    """
    if epochs < 1:
        raise ConfigError(f"epochs is {epochs}; give 1 or more")
    loss = DistillationLoss(temperature, alpha)
    batches, count = _readable(loader, student)
    maps = _Features(student, teacher, features or {}, features_distance)
    with evaluation_mode(teacher), maps.watching():
        _prepare(teacher, student, _first(batches, student), loss, maps)
        own = _optimizer(optimizer, student, maps.loss, learning_rate)
        schedule = None
        if optimizer is None:
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(own, epochs * count)
        losses, steps = [], 0
        student.train()
        for _ in range(epochs):
            total, rows = 0.0, 0
            for batch in named_batches(batches, student):
                shown = to_device(batch, student)
                value, distance = _losses(teacher, student, shown, loss, maps)
                value = value + features_weight * distance
                own.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                own.step()
                if schedule is not None:
                    schedule.step()
                size = len(next(iter(batch.values())))
                total, rows, steps = total + float(value.detach()) * size, rows + size, steps + 1
            losses.append(total / rows)
    student.eval()
    return DistillReport(tuple(losses), steps)


def _readable(loader: Loader, student: nn.Module) -> tuple[Loader, int]:
    """Return the batches so that they can be read several times, and their number."""
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        return loader, len(loader)
    kept = list(named_batches(loader, student))
    return kept, len(kept)


def _first(batches: Loader, student: nn.Module) -> Batch:
    return to_device(next(named_batches(batches, student)), student)


def _optimizer(
    given: torch.optim.Optimizer | None, student: nn.Module, loss: nn.Module, learning_rate: float
) -> torch.optim.Optimizer:
    if given is None:
        return torch.optim.AdamW([*student.parameters(), *loss.parameters()], learning_rate)
    learned = list(loss.parameters())
    if learned:
        given.add_param_group({"params": learned})
    return given


@torch.no_grad()
def _prepare(
    teacher: nn.Module,
    student: nn.Module,
    batch: Batch,
    loss: DistillationLoss,
    maps: _Features,
) -> None:
    """Run both models on a batch, before anything changes, and add the maps between widths.

    Raises:
        ModelError, DataError, TargetError: as `distill`.
    """
    with evaluation_mode(student):
        mine = logits_in(call_model(student, batch))
        theirs = logits_in(_ask(teacher, batch, maps))
        if mine.shape != theirs.shape:
            raise ModelError(
                f"student and teacher give logits of the shapes {list(mine.shape)} and "
                f"{list(theirs.shape)}; give both the same outputs"
            )
        maps.loss.add_projections(*maps.states())
        maps.loss.to(mine.device)
        if loss.alpha < 1:
            if "labels" not in batch:
                raise DataError(
                    "a batch has no labels; give tuples whose last member is the labels, or set "
                    "alpha to 1 to learn from the teacher alone"
                )
            loss_of_logits(student, mine, batch["labels"], None)
        if "labels" in batch:
            loss.task = task_of(student, batch["labels"])


def _losses(
    teacher: nn.Module,
    student: nn.Module,
    batch: Batch,
    loss: DistillationLoss,
    maps: _Features,
) -> tuple[Tensor, Tensor]:
    """Return the loss on teacher and labels, and the distance of the features."""
    mine = logits_in(call_model(student, batch))
    with torch.no_grad():
        theirs = logits_in(_ask(teacher, batch, maps))
    labels = batch.get("labels")
    by_place = labels is not None and loss.task in ("tokens", "masked", "pixels")
    counted = labels != no_label(student) if labels is not None and by_place else None
    total = loss.alpha * loss.soft(mine, theirs, counted)
    if loss.alpha < 1:
        hard = loss_of_logits(student, mine, batch["labels"], None)
        total = total + (1 - loss.alpha) * hard
    return total, maps.distance(mine)


def _ask(teacher: nn.Module, batch: Batch, maps: _Features) -> object:
    """Call the teacher on its own device; its names may be other than the student's."""
    try:
        return call_model(teacher, to_device(batch, teacher))
    except TypeError as error:
        raise ModelError(
            f"the teacher {type(teacher).__name__} cannot read the batches "
            f"({', '.join(name for name in batch if name != 'labels')}): {first_line(error)}"
        ) from error


class _Features:
    """The outputs of pairs of modules, and their distance.

    Args:
        student, teacher: the models.
        pairs: student's module -> teacher's module.
        distance: of the outputs.

    Raises:
        TargetError: a name that a model does not have.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        pairs: Mapping[str, str],
        distance: HiddenDistance,
    ) -> None:
        self.pairs = dict(pairs)
        self._modules = [
            (_module(student, mine, "student"), _module(teacher, theirs, "teacher"))
            for mine, theirs in pairs.items()
        ]
        self._kept: tuple[dict[int, Tensor], dict[int, Tensor]] = ({}, {})
        config = DistillationLossConfig(hidden_weight=float(bool(pairs)), hidden_distance=distance)
        self.loss = LayerLoss(config, {place: place for place in range(len(self.pairs))})

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the outputs of each forward pass inside."""
        hooks = [
            module.register_forward_hook(partial(self._keep, side, place))
            for place, pair in enumerate(self._modules)
            for side, module in enumerate(pair)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def states(self) -> tuple[LayerStates, LayerStates]:
        """Return the outputs of the last pass of each model.

        Raises:
            TargetError: a module that was not called.
        """
        for side, who in enumerate(("student", "teacher")):
            for place, names in enumerate(self.pairs.items()):
                if place not in self._kept[side]:
                    raise TargetError(
                        f"the {who}'s module {names[side]!r} is not called in a forward pass; "
                        f"name another in features"
                    )
        mine, theirs = (LayerStates(hidden_states=dict(kept)) for kept in self._kept)
        return mine, theirs

    def distance(self, logits: Tensor) -> Tensor:
        """Return the sum of the distances of all pairs; zero without any."""
        if not self.pairs:
            return torch.zeros((), device=logits.device)
        found: Tensor = self.loss(*self.states(), images=True)["hidden_loss"]
        return found

    def _keep(
        self, side: int, place: int, module: nn.Module, inputs: object, output: object
    ) -> None:
        tensor = output[0] if isinstance(output, (tuple, list)) else output
        if not isinstance(tensor, Tensor) or tensor.dim() < 2:
            raise TargetError(
                f"{type(module).__name__} in features gives {type(tensor).__name__} and no tensor "
                f"of two or more dimensions; name another module"
            )
        self._kept[side][place] = tensor.unsqueeze(1) if tensor.dim() == 2 else tensor


def _module(model: nn.Module, name: str, who: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name not in modules:
        raise TargetError(f"the {who} has no module {name!r}{nearest(name, modules)}")
    return modules[name]
