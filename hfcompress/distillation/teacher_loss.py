"""``TeacherLoss``: the loss terms that compare a student with frozen teachers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast

import torch
from torch import Tensor, nn

from hfcompress.distillation.checks import check_teacher
from hfcompress.distillation.config import (
    DistillationLossConfig,
    DistillationTrainingConfig,
    TeacherTermsConfig,
)
from hfcompress.distillation.layer_loss import LayerLoss
from hfcompress.distillation.layer_map import check_layer_map, uniform_layer_map
from hfcompress.distillation.layer_outputs import LayerWatch
from hfcompress.distillation.losses import DistillationLoss, logits_mse
from hfcompress.distillation.teacher_outputs import (
    QUERY,
    LayerStates,
    TeacherOutputs,
    fit_pixels,
    fit_tokens,
)
from hfcompress.distillation.teachers import Teacher, TeacherLike, as_teacher
from hfcompress.distillation.vector_losses import (
    listwise_divergence,
    margin_distance,
    ranking_divergence,
    similarity_distance,
)
from hfcompress.errors import ConfigError, DataError, ModelError
from hfcompress.inference import logits_in, with_decoder_inputs
from hfcompress.models.architectures import blocks, family_of
from hfcompress.models.outputs import BY_PLACE, BY_TOKEN, KIND_NAMES, VECTORS
from hfcompress.training.hard_loss import Task
from hfcompress.training.outputs import (
    Inputs,
    counted_places,
    infer_task,
)
from hfcompress.training.trainer import count_rows

SoftLoss = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
"""``soft(student_logits, teacher_logits, mask)``; mask as in `losses.soft_loss`."""

_BY_BATCH = {"similarity_loss": similarity_distance, "ranking_loss": ranking_divergence}
"""Terms that compare the vectors of a batch with each other."""
_BY_QUERY = {"margin_loss": margin_distance, "listwise_loss": listwise_divergence}
"""Terms that compare the scores of a query's passages."""


@dataclass(frozen=True)
class _Pair:
    """One teacher, its share of the loss, and the losses on its layers."""

    teacher: Teacher
    share: float
    layers: LayerLoss


class TeacherLoss:
    """Runs the teachers on a batch and compares their outputs with the student's.

    Call it as ``terms(model, inputs, outputs)`` after the student ran on the inputs; it returns
    one weighted scalar per term. Hooks read the layers; the context manager removes them::

        with TeacherLoss(student, teacher, DistillationLossConfig(hidden_weight=1.0)) as terms:
            PruningTrainer(student, args, loss_terms=terms, ...).train()

    A teacher that is a model is set to evaluation mode and moved to the batch's device; its
    weights do not change. With several teachers each term is the weighted mean.

    Args:
        student: the model that trains.
        teacher: one teacher, or several.
        config: the terms and their weights.
        soft: the soft loss; by default `DistillationLoss.soft`.

    Attributes:
        weights: weight of each term by name; may be changed between batches.
        loss: the `DistillationLoss` that holds the temperature.
        task: what the logits mean; a new `DistillationLoss` as ``loss`` changes it.

    Raises:
        ModelError: labels that differ, a teacher that is the student, or layers that cannot be
            compared.
        ConfigError: a layer map out of range, no teacher, or a wrong number of teacher weights.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: TeacherLike | Sequence[TeacherLike],
        config: DistillationLossConfig | DistillationTrainingConfig,
        soft: SoftLoss | None = None,
    ) -> None:
        if isinstance(config, DistillationLossConfig):
            soft_weight, teacher_weights = config.soft_weight, None
        else:
            soft_weight, teacher_weights = config.alpha, config.teacher_weights
        self.config = config
        self.student = student
        self.loss = DistillationLoss(config.temperature, task=config.task or infer_task(student))
        self.soft = self.loss.soft if soft is None else soft
        self.weights = config.weights(soft_weight)
        teachers = listed(teacher)
        shares = _shares(teacher_weights, len(teachers))
        for item in teachers:
            check_teacher(student, item)
        maps = [layer_map_of(student, item, config) for item in teachers]
        heads = config.relation_heads or relation_heads(student)
        self._pairs = [
            _Pair(_watched(item, config, pairs), share, LayerLoss(config, pairs, heads))
            for item, share, pairs in zip(teachers, shares, maps, strict=True)
        ]
        self._watch = self._watch_of(student)

    @property
    def task(self) -> Task:
        """What the logits mean."""
        return self.loss.task

    @property
    def layers(self) -> nn.ModuleList:
        """The layer losses, one per teacher; their parameters are the learned projections."""
        return nn.ModuleList(pair.layers for pair in self._pairs)

    def __call__(self, model: nn.Module, inputs: Inputs, outputs: object) -> dict[str, Tensor]:
        """Return the weighted terms of one batch.

        Args:
            model: the student; unused, because its outputs and hooks hold what is compared.
            inputs: the batch with all of its columns; teachers do not receive the labels.
            outputs: the student's, with ``logits``.
        """
        shown = with_decoder_inputs(self.student, inputs)
        terms = self.terms(shown, outputs, self.position_mask(inputs))
        return {name: self.weights[name] * term for name, term in terms.items()}

    def terms(
        self, inputs: Inputs, outputs: object, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the unweighted terms of one batch, each the mean over teachers.

        Terms whose weight is zero are left out.

        Args:
            inputs: the batch with all of its columns.
            outputs: the student's.
            mask: non-zero where logits count, as in `losses.soft_loss`.
        """
        if not any(self.weights.values()):
            return {}
        logits, states = self._student(outputs)
        total: dict[str, Tensor] = {}
        for pair in self._pairs:
            taught = pair.teacher.ask(inputs).to(logits.device)
            with torch.autocast(logits.device.type, enabled=False):
                project = pair.layers.vectors
                shown = logits if project is None else project(logits)
                terms = self._compare(shown, taught, mask)
                terms |= self._compare_texts(logits, taught)
                terms |= self._compare_passages(logits, taught, inputs.get(QUERY))
                images = "pixel_values" in inputs
                terms |= pair.layers(states, taught, inputs.get("attention_mask"), images)
            for name, term in terms.items():
                total[name] = total.get(name, 0.0) + pair.share * term
        return total

    def add_projections(self, inputs: Inputs, outputs: object) -> None:
        """Add a learned projection for each pair of compared layers with different widths, and for
        vectors of different sizes.

        Args:
            inputs: any batch.
            outputs: the student's outputs for it.
        """
        logits, states = self._student(outputs)
        for pair in self._pairs:
            taught = pair.teacher.ask(inputs)
            pair.layers.add_projections(states, taught)
            if self.task in VECTORS:
                pair.layers.add_vector_projection(logits, taught.logits)

    def position_mask(self, inputs: Inputs) -> Tensor | None:
        """Return the mask of logits that count: of tokens or pixels, or None for all rows."""
        return counted_places(self.student, inputs) if self.task in BY_PLACE else None

    def part_counts(self, inputs: Inputs) -> dict[str, Tensor]:
        """Return what each term averages over in a batch: rows, positions or tokens."""
        return self.counts_of(inputs, self.position_mask(inputs))

    def counts_of(self, inputs: Inputs, mask: Tensor | None) -> dict[str, Tensor]:
        """As `part_counts`, for a mask of the logits that count."""
        rows, padding = count_rows(inputs), inputs.get("attention_mask")
        tokens = rows if padding is None else (padding != 0).sum()
        # A span is a distribution over the positions, so its loss is a mean over rows.
        spans = self.task == "spans"
        positions = rows if spans or mask is None else (mask != 0).sum()
        by_row = self.config.hidden_distance in ("patience", "attention_transfer")
        return {
            "soft_loss": positions,
            "logits_loss": tokens if spans else positions,
            **dict.fromkeys((*_BY_BATCH, *_BY_QUERY), rows),
            "hidden_loss": rows if by_row else tokens,
            "attention_loss": tokens,
            "value_loss": tokens,
        }

    def watch(self, student: nn.Module) -> None:
        """Move the hooks to another student of the same shape."""
        self._watch.close()
        self.student = student
        self._watch = self._watch_of(student)

    def open(self) -> None:
        """Set the hooks again that `close` removed."""
        self._watch.open()
        for pair in self._pairs:
            pair.teacher.open()

    def close(self) -> None:
        """Remove the hooks."""
        self._watch.close()
        for pair in self._pairs:
            pair.teacher.close()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _watch_of(self, student: nn.Module) -> LayerWatch:
        maps = [pair.layers.layer_map for pair in self._pairs]
        mapped, last = {own for pairs in maps for own in pairs}, {max(p) for p in maps if p}
        return LayerWatch(student, **wanted_layers(self.config, mapped, last))

    def _student(self, outputs: object) -> tuple[Tensor, LayerStates]:
        logits = logits_in(outputs).float()
        return logits, self._watch.take().to(logits.device)

    def _compare(
        self, logits: Tensor, taught: TeacherOutputs, mask: Tensor | None
    ) -> dict[str, Tensor]:
        theirs = taught.logits
        if self.task in BY_TOKEN:
            dimension = 2 if self.task == "spans" else 1
            theirs = fit_tokens(theirs, logits.shape[dimension], dimension)
        elif self.task == "pixels":
            theirs = fit_pixels(theirs, logits)
        terms: dict[str, Tensor] = {}
        if self.weights.get("soft_loss"):
            terms["soft_loss"] = self.soft(logits, theirs, mask)
        if self.weights.get("logits_loss"):
            terms["logits_loss"] = logits_mse(logits, theirs, self.task, mask)
        return terms

    def _compare_texts(self, logits: Tensor, taught: TeacherOutputs) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for name, compare in _BY_BATCH.items():
            if self.weights.get(name):
                if self.task not in VECTORS:
                    raise ConfigError(
                        f"{name.replace('_loss', '_weight')} compares vectors of texts, and the "
                        f"student gives {KIND_NAMES[self.task]}; set it to 0"
                    )
                terms[name] = compare(logits, taught.logits)
        return terms

    def _compare_passages(
        self, logits: Tensor, taught: TeacherOutputs, queries: Tensor | None
    ) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for name, compare in _BY_QUERY.items():
            if not self.weights.get(name):
                continue
            weight = name.replace("_loss", "_weight")
            if logits.ndim != 2 or logits.shape[1] != 1:
                raise ConfigError(
                    f"{weight} compares scores of passages, and the student gives "
                    f"{KIND_NAMES[self.task]}; set it to 0"
                )
            if queries is None:
                raise DataError(
                    f"{weight} compares the passages of a query; add a column {QUERY!r} with the "
                    f"number of each row's query"
                )
            terms[name] = compare(logits[:, 0], taught.logits[:, 0], queries.to(logits.device))
        return terms


def listed(teacher: TeacherLike | Sequence[TeacherLike]) -> list[TeacherLike]:
    """Return one teacher or several as a list."""
    return list(teacher) if isinstance(teacher, (list, tuple)) else [cast(TeacherLike, teacher)]


def _watched(
    teacher: TeacherLike, config: TeacherTermsConfig, layer_map: dict[int, int]
) -> Teacher:
    last = {layer_map[max(layer_map)]} if layer_map else set()
    wanted = wanted_layers(config, set(layer_map.values()), last)
    return as_teacher(teacher, config.teacher_precision, **wanted)


def _shares(weights: Sequence[float] | None, teachers: int) -> list[float]:
    if not teachers:
        raise ConfigError("teacher is an empty list; give at least one")
    given = list(weights) if weights is not None else [1.0] * teachers
    if len(given) != teachers:
        raise ConfigError(
            f"{len(given)} teacher_weights for {teachers} teachers; give one weight per teacher"
        )
    return [weight / sum(given) for weight in given]


def layer_map_of(
    student: nn.Module, teacher: TeacherLike, config: TeacherTermsConfig
) -> dict[int, int]:
    """Return student layer -> teacher layer: the configured map, or an evenly spaced one.

    The map is empty if no layers are compared. Cached outputs of as many layers as the student
    has (``hidden_layers``) are mapped in order.

    Raises:
        ConfigError: a layer out of range, or a teacher with an unknown number of layers.
        ModelError: a model without repeated layers.
    """
    if not config.compares_layers:
        return {}
    mine = _count_layers(student)
    if config.attention_weight or config.value_weight:
        _check_windows(student, teacher)
    if not isinstance(teacher, nn.Module):
        kept = sorted(getattr(teacher, "hidden_layers", ()))
        if config.layer_map is None and len(kept) == mine:
            return dict(enumerate(kept))
        if config.layer_map is None:
            raise ConfigError(
                "cannot count the layers of a teacher that is not a model; give layer_map to "
                "compare layers"
            )
        return check_layer_map(
            config.layer_map, mine, max(config.layer_map.values(), default=0) + 1
        )
    theirs = _count_layers(teacher)
    if config.layer_map is None:
        return uniform_layer_map(mine, theirs)
    return check_layer_map(config.layer_map, mine, theirs)


def _check_windows(student: nn.Module, teacher: TeacherLike) -> None:
    """Refuse to compare attention inside windows with attention over other tokens.

    Raises:
        ModelError: the windows of student and teacher differ.
    """
    models = [model for model in (student, teacher) if isinstance(model, nn.Module)]
    windows = [_window(model) for model in models]
    if len(set(windows)) > 1:
        shown = [f"windows of {side}" if side else "all tokens" for side in windows]
        raise ModelError(
            f"the student attends over {shown[0]} and the teacher over {shown[1]}, so their "
            "attention cannot be compared; set attention_weight and value_weight to 0"
        )


def _window(model: nn.Module) -> int:
    family = family_of(model)
    return int(getattr(model.config, family.window)) if family and family.window else 0


def _count_layers(model: nn.Module) -> int:
    count = len(blocks(model))
    if not count:
        raise ModelError(
            f"{type(model).__name__} has no repeated layers to compare; set "
            "hidden_weight, attention_weight and value_weight to 0"
        )
    return count


def wanted_layers(
    config: TeacherTermsConfig, mapped: set[int], last: set[int]
) -> dict[str, Collection[int]]:
    """Return the layers whose outputs the losses need, as arguments of `LayerWatch`.

    Args:
        config: the losses.
        mapped: layers that are compared.
        last: the layers whose value relation is compared.
    """
    return {
        "hidden": mapped if config.hidden_weight else (),
        "attentions": mapped if config.attention_weight else (),
        "values": last if config.value_weight else (),
    }


def relation_heads(model: nn.Module) -> int | None:
    """Return the student's number of attention heads; None for an unknown family."""
    family = family_of(model)
    if family is None:
        return None
    heads: int | Sequence[int] = getattr(model.config, family.heads)
    # A family with stages has one number for each; values are compared in the last one.
    return heads if isinstance(heads, int) else heads[-1]
