"""``Calibration``: batches of examples, and the statistics that pruning methods take from them.

Statistics of the dense model are collected once, in one pass, and kept for every method and
sparsity that asks again, as long as the model's weights are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hfcompress.calibration.hooks import Group, call_order, evaluating, watching
from hfcompress.calibration.moments import Moments, MomentSum, input_rows, weight_of
from hfcompress.errors import CalibrationError
from hfcompress.inference import (
    call_model,
    input_names,
    logits_in,
    takes_labels,
    with_decoder_inputs,
    without_labels,
)
from hfcompress.tasks.loaders import has_places, name_batch, named_batches, placed_batches

Batch = Mapping[str, Tensor]
Result = TypeVar("Result")


class Calibration:
    """Examples to calibrate on::

        prune(model, PruningConfig(method="sparsegpt", sparsity=0.6), Calibration(batches))

    Args:
        batches: what the model is called with, by name: ``input_ids`` and ``attention_mask``, or
            ``pixel_values``; ``labels`` where a method needs the loss. Any loader that
            `hfcompress.tasks.loaders` reads will do, such as a DataLoader of tuples; their members
            get the names of the model that they are used with. Tokens whose ``attention_mask`` is 0
            never count.
        rows: how many rows are asked for: the first so many are used; None uses all.

    Raises:
        CalibrationError: no rows, fewer rows than asked, padding only, or something that is not
            a batch.
    """

    def __init__(self, batches: object, rows: int | None = None) -> None:
        self.batches = _first_rows(list(placed_batches(batches, CalibrationError)), rows)
        if not any(_has_tokens(batch) for batch in self.batches):
            raise CalibrationError(
                "the calibration data hold no token that is not padding (attention_mask is 0 "
                "everywhere); give rows with text"
            )
        self._kept: dict[tuple[object, ...], Any] = {}

    def first(self, rows: int | None) -> Calibration:
        """The first rows alone (the same object each time); all of them for None.

        Raises:
            CalibrationError: fewer rows than asked.
        """
        if rows is None or rows == self.rows:
            return self
        return self.kept(("first", rows), lambda: Calibration(self.batches, rows))

    def spread(self, rows: int) -> Calibration:
        """At most so many rows, from batches all over; all where there are fewer."""
        step = max(1, self.rows // rows)
        picked = self.kept(("spread", step), lambda: Calibration(self.batches[::step]))
        return picked.first(min(rows, picked.rows))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(row_count(batch) for batch in self.batches)

    def tokens(self, index: int) -> Tensor | None:
        """Batch x length, True for real tokens; None when a batch has no ``attention_mask``."""
        mask = self.batches[index].get("attention_mask")
        return None if mask is None or mask.dim() != 2 else mask.bool()

    def run(self, model: nn.Module, index: int) -> object:
        """Call a model with one batch (without its labels)."""
        return run_on(model, self.batches[index])

    def kept(self, key: tuple[object, ...], collect: Callable[[], Result]) -> Result:
        """The result of the first ``collect`` under this key."""
        if key not in self._kept:
            self._kept[key] = collect()
        result: Result = self._kept[key]
        return result

    def moments(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, Moments]:
        """Moments of each module's inputs in the model as it is, from one pass over the batches.

        Raises:
            CalibrationError: a module that is never called, or NaN in its inputs.
        """
        key = ("moments", fingerprint(model), *modules)
        return self.kept(key, lambda: self._collect_moments(model, modules))

    def squared_norms(
        self, model: nn.Module, modules: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """Mean square of each input of each module, groups x inputs; much less than `moments`.

        Raises:
            CalibrationError: as for `moments`.
        """
        key = ("norms", fingerprint(model), *modules)
        return self.kept(key, lambda: self._collect_norms(model, modules))

    def gradients(
        self, model: nn.Module, modules: Mapping[str, nn.Module], *, squared: bool
    ) -> dict[str, Tensor]:
        """Mean over the rows of the loss's absolute or squared gradient, in the weights' shapes.

        Raises:
            CalibrationError: the batches have no labels, or NaN in a gradient.
        """
        key = ("gradients", squared, fingerprint(model), *modules)
        return self.kept(key, lambda: self._collect_gradients(model, modules, squared))

    def each_gradient(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        use: Callable[[dict[str, Tensor]], None],
    ) -> int:
        """Give each row's gradients of the loss to ``use``, by module; returns how many rows.

        Raises:
            CalibrationError: the batches have no labels, or NaN in a gradient.
        """
        weights = [weight_of(module) for module in modules.values()]
        count = 0
        with evaluating(model), torch.enable_grad(), _requiring_gradients(weights):
            for row in self._single_rows():
                loss = task_loss(model, row)
                gradients = torch.autograd.grad(loss, weights)
                for name, gradient in zip(modules, gradients, strict=True):
                    if not bool(torch.isfinite(gradient.sum())):
                        raise CalibrationError(f"the gradient of {name}.weight is NaN or infinite")
                use(dict(zip(modules, gradients, strict=True)))
                count += 1
        return count

    def uses(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> set[str]:
        """The modules on whose weights the loss of the first batch depends, by name.

        Raises:
            CalibrationError: the batches have no labels.
        """
        require_labels(self.batches[0])
        weights = [weight_of(module) for module in modules.values()]
        with evaluating(model), torch.enable_grad(), _requiring_gradients(weights):
            loss = task_loss(model, self.batches[0])
            found = torch.autograd.grad(loss, weights, allow_unused=True)
        return {name for name, part in zip(modules, found, strict=True) if part is not None}

    def _collect_moments(
        self, model: nn.Module, modules: Mapping[str, nn.Module]
    ) -> dict[str, Moments]:
        groups = self.call_order(model, modules)
        leaders = {group.names[0]: modules[group.names[0]] for group in groups}
        sums = {name: MomentSum() for name in leaders}

        def add(name: str, inputs: Tensor, tokens: Tensor | None) -> None:
            sums[name].add(input_rows(leaders[name], inputs, tokens))

        self.look(model, leaders, add)
        shared = {name: sums[group.names[0]] for group in groups for name in group.names}
        return {name: finite_moments(name, shared[name]) for name in modules}

    def _collect_norms(
        self, model: nn.Module, modules: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        totals: dict[str, Tensor] = {}
        counts = dict.fromkeys(modules, 0)

        def add(name: str, inputs: Tensor, tokens: Tensor | None) -> None:
            rows = input_rows(modules[name], inputs, tokens).float()
            counts[name] += rows.shape[1]
            square = rows.square().sum(1)
            totals[name] = square if name not in totals else totals[name] + square

        self.look(model, modules, add)
        for name in modules:
            _check_inputs(name, counts[name], totals.get(name))
        return {name: totals[name] / counts[name] for name in modules}

    def _collect_gradients(
        self, model: nn.Module, modules: Mapping[str, nn.Module], squared: bool
    ) -> dict[str, Tensor]:
        sums = {name: torch.zeros_like(weight_of(module)) for name, module in modules.items()}

        def add(gradients: dict[str, Tensor]) -> None:
            for name, gradient in gradients.items():
                sums[name].add_(gradient.square() if squared else gradient.abs())

        count = self.each_gradient(model, modules, add)
        return {name: total / count for name, total in sums.items()}

    def look(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        use: Callable[[str, Tensor, Tensor | None], None],
    ) -> None:
        """Run all batches; ``use(name, inputs, tokens)`` at each call of one of the modules."""
        with evaluating(model), torch.no_grad():
            for index in range(len(self.batches)):
                tokens = self.tokens(index)
                if tokens is not None and not bool(tokens.any()):
                    continue
                with watching(modules, partial(_with_tokens, use, tokens)):
                    self.run(model, index)

    def call_order(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> list[Group]:
        """`hooks.call_order` for the first batch."""
        with evaluating(model):
            groups = call_order(lambda: self.run(model, 0), modules)
        missing = set(modules) - {name for group in groups for name in group.names}
        if missing:
            raise CalibrationError(
                f"{', '.join(sorted(missing))} is never called in a forward pass; exclude it"
            )
        return groups

    def _single_rows(self) -> list[Batch]:
        rows = []
        for index, batch in enumerate(self.batches):
            require_labels(batch)
            tokens = self.tokens(index)
            for row in range(row_count(batch)):
                rows.append(_one_row(batch, row, None if tokens is None else tokens[row]))
        return [row for row in rows if _has_tokens(row)]


def as_calibration(data: object, model: nn.Module) -> Calibration:
    """Return the calibration data, or make them of any loader; tuples get the model's names.

    Raises:
        CalibrationError: as `Calibration`, or batches that do not fit the model's inputs.
    """
    if not isinstance(data, Calibration):
        return Calibration(list(named_batches(data, model, CalibrationError)))
    if not any(map(has_places, data.batches)):
        return data
    names = input_names(model)

    def named() -> Calibration:
        return Calibration([name_batch(dict(b), model, CalibrationError) for b in data.batches])

    return data.kept(("named", *names), named)


def _with_tokens(
    use: Callable[[str, Tensor, Tensor | None], None],
    tokens: Tensor | None,
    name: str,
    inputs: Tensor,
) -> None:
    use(name, inputs, tokens)


def run_on(model: nn.Module, batch: Batch) -> Any:
    """Call a model with a batch on the model's device; labels serve as a decoder's inputs only."""
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items()}
    return call_model(model, with_decoder_inputs(model, inputs))


def fingerprint(model: nn.Module) -> str:
    """A hash of a model's weights and buffers: the key of what was collected with them."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        flat = tensor.detach().reshape(-1).contiguous().view(torch.uint8)
        digest.update(flat.cpu().numpy().data)
    return digest.hexdigest()


def finite_moments(name: str, total: MomentSum) -> Moments:
    """A module's moments, checked.

    Raises:
        CalibrationError: no token was seen, or NaN or infinity in the inputs.
    """
    _check_inputs(name, total.count, total.moments(name).gram if total.count else None)
    return total.moments(name)


def _check_inputs(name: str, count: float, statistic: Tensor | None) -> None:
    if not count or statistic is None:
        raise CalibrationError(f"{name} saw no input during calibration; exclude it")
    if not bool(torch.isfinite(statistic).all()):
        raise CalibrationError(
            f"the inputs of {name} are NaN or infinite during calibration; "
            f"check the checkpoint and the calibration data"
        )


def _first_rows(batches: list[dict[str, Tensor]], rows: int | None) -> list[Batch]:
    if rows is None:
        return list(batches)
    found = sum(row_count(batch) for batch in batches)
    if found < rows:
        raise CalibrationError(
            f"calibration asks for {rows} rows and there are {found}; "
            f"lower the number or give more data"
        )
    taken: list[Batch] = []
    for batch in batches:
        left = rows - sum(row_count(item) for item in taken)
        if left > 0:
            taken.append({key: value[:left] for key, value in batch.items()})
    return taken


def row_count(batch: Batch) -> int:
    """The rows of a batch."""
    return len(next(iter(batch.values()))) if batch else 0


def _has_tokens(batch: Batch) -> bool:
    mask = batch.get("attention_mask")
    return bool(mask.any()) if mask is not None else row_count(batch) > 0


def _one_row(batch: Batch, row: int, tokens: Tensor | None) -> Batch:
    """One row alone, cut after its last token so that padding costs nothing."""
    single = {key: value[row : row + 1] for key, value in batch.items()}
    if tokens is None or not bool(tokens.any()):
        return single
    end = int(tokens.nonzero().max()) + 1
    lengthy = {key for key, value in batch.items() if value.shape[1:2] == tokens.shape}
    return {key: value[:, :end] if key in lengthy else value for key, value in single.items()}


def require_labels(batch: Batch) -> None:
    """Refuse rows without labels.

    Raises:
        CalibrationError: there are none.
    """
    if len(without_labels(batch)) == len(batch):
        raise CalibrationError(
            "this method needs the loss, and the calibration batches have no 'labels'; "
            "add them or take a method without gradients (wanda, sparsegpt, alps, reconstruction)"
        )


def task_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own loss on a labelled batch, the mean over its rows.

    Of a module that does not take labels, the cross entropy of its logits.

    Raises:
        CalibrationError: the model returns none.
    """
    device = next(model.parameters()).device
    if not takes_labels(model):
        return _cross_entropy(logits_in(run_on(model, batch)), batch["labels"].to(device))
    result = model(**{key: value.to(device) for key, value in batch.items()})
    loss = getattr(result, "loss", None)
    if not isinstance(loss, Tensor):
        raise CalibrationError(
            f"{type(model).__name__} returns no loss for labelled batches; "
            f"gradient methods need a model with a task head"
        )
    return loss


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross entropy of classes along dimension 1, or along the last one (tokens).

    Raises:
        CalibrationError: labels of another shape, or not integers.
    """
    if logits.dim() > 2 and labels.shape == logits.shape[:-1]:
        return cross_entropy(logits.flatten(0, -2), labels.flatten())
    if labels.shape not in (logits.shape, (*logits.shape[:1], *logits.shape[2:])):
        raise CalibrationError(
            f"labels of the shape {list(labels.shape)} do not fit logits of the shape "
            f"{list(logits.shape)}; give one label for each row, pixel or token"
        )
    if labels.shape != logits.shape and labels.is_floating_point():
        raise CalibrationError(
            f"labels of type {labels.dtype} are not class numbers, which are integers: write "
            f"labels.long()"
        )
    return cross_entropy(logits, labels)


@contextmanager
def _requiring_gradients(weights: Sequence[Tensor]) -> Iterator[None]:
    """Weights require gradients inside, whatever they did before."""
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, required in zip(weights, before, strict=True):
            weight.requires_grad_(required)
