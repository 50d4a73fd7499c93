"""Undo of a change that fails: a model's tensors, modules and config as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_CONFIGS = {"PreTrainedConfig", "PretrainedConfig", "GenerationConfig"}
"""Classes of transformers, by name: shrinking a plain module must not import transformers."""


@dataclass(frozen=True)
class _SavedTensor:
    """A parameter or buffer with copies of its values and its gradient."""

    tensor: Tensor
    values: Tensor
    requires_grad: bool
    gradient: Tensor | None

    def restore(self) -> None:
        tensor, values = self.tensor, self.values.data
        tensor.grad = None
        same = tensor.shape == values.shape and tensor.dtype == values.dtype
        if same and tensor.device == values.device and tensor.is_contiguous():
            tensor.data.copy_(values)  # other views of the storage see the old values, too
        else:
            tensor.data = values
        tensor.requires_grad_(self.requires_grad)
        tensor.grad = self.gradient


class Snapshot:
    """The state of a model, for `restore`.

    Saved are the values of all parameters and buffers, their gradients, and the attributes of
    every module and config, with the dicts, lists and sets in them. Objects keep their identity.

    Args:
        model: not changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._attributes: dict[int, tuple[object, dict[str, object]]] = {}
        self._dicts: dict[int, tuple[dict[object, object], dict[object, object]]] = {}
        self._lists: dict[int, tuple[list[object], list[object]]] = {}
        self._sets: dict[int, tuple[set[object], set[object]]] = {}
        self._save(model)
        self._copies: dict[int, object] = {}
        tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self._tensors = [
            _SavedTensor(
                tensor,
                copy.deepcopy(tensor, self._copies),
                tensor.requires_grad,
                None if tensor.grad is None else tensor.grad.clone(),
            )
            for tensor in tensors.values()
        ]

    def copy_of(self, model: nn.Module) -> nn.Module:
        """A deep copy of the model that takes its tensors from the snapshot.

        Args:
            model: with the values of when the snapshot was taken; layers may have been dropped.

        Returns:
            the copy, which must not be changed: `restore` needs its tensors.
        """
        return copy.deepcopy(model, dict(self._copies))

    @torch.no_grad()
    def restore(self) -> None:
        """Make the model what it was; the copies cannot be used afterwards."""
        for thing, attributes in self._attributes.values():
            vars(thing).clear()
            vars(thing).update(attributes)
        for mapping, items in self._dicts.values():
            mapping.clear()
            mapping.update(items)
        for sequence, values in self._lists.values():
            sequence[:] = values
        for collection, members in self._sets.values():
            collection.clear()
            collection.update(members)
        for saved in self._tensors:
            saved.restore()

    def _save(self, value: object) -> None:
        """Copy the attributes or items of a value, and of what they refer to."""
        key = id(value)
        if (isinstance(value, nn.Module) or _is_config(value)) and key not in self._attributes:
            self._attributes[key] = value, dict(vars(value))
            for attribute in vars(value).values():
                self._save(attribute)
        elif isinstance(value, dict) and key not in self._dicts:
            self._dicts[key] = value, dict(value)
            for item in value.values():
                self._save(item)
        elif isinstance(value, list) and key not in self._lists:
            self._lists[key] = value, list(value)
            for item in value:
                self._save(item)
        elif isinstance(value, set) and key not in self._sets:
            self._sets[key] = value, set(value)


def _is_config(value: object) -> bool:
    return any(cls.__name__ in _CONFIGS for cls in type(value).__mro__)


@contextmanager
def restored_on_error(model: nn.Module) -> Iterator[Snapshot]:
    """Restore the model bit for bit if the block raises, whatever it raises."""
    snapshot = Snapshot(model)
    try:
        yield snapshot
    except BaseException:
        snapshot.restore()
        raise
