"""Forward hooks that record inputs and outputs of modules, and that end a pass early."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hfcompress.errors import CalibrationError, ModelError

Run = Callable[[], object]
Arguments = tuple[Any, ...]
"""Positional arguments of a module, which may be anything."""


class Stop(Exception):
    """Ends a forward pass whose remaining layers are not needed."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside: no dropout, and no cache of keys and values between two calls."""
    modes = {module: module.training for module in model.modules()}
    # An encoder and a decoder have configs of their own.
    configs = {id(config): config for config in map(_config_of, modes) if config is not None}
    caches = [(config, config.use_cache) for config in configs.values()]
    model.eval()
    for config, _ in caches:
        config.use_cache = False
    try:
        yield
    finally:
        for config, before in caches:
            config.use_cache = before
        for module, mode in modes.items():
            module.training = mode


class _HasCache(Protocol):
    use_cache: bool


def _config_of(module: nn.Module) -> _HasCache | None:
    """A module's config, where it says whether keys and values are kept."""
    config: _HasCache | None = getattr(module, "config", None)
    return config if getattr(config, "use_cache", None) is not None else None


@dataclass(frozen=True)
class Group:
    """Modules that read the same input.

    Attributes:
        names: in the order in which they are called.
        once: each is called once in a forward pass, so that the pass can end after it.
    """

    names: tuple[str, ...]
    once: bool


def call_order(run: Run, modules: Mapping[str, nn.Module]) -> list[Group]:
    """The modules in the order in which a forward pass calls them, those with one input together.

    Args:
        run: makes one forward pass.
        modules: by name; those that are never called are left out.
    """
    first: dict[str, tuple[Tensor, int]] = {}  # holding inputs keeps their identities distinct
    again: set[str] = set()

    def note(name: str, inputs: Tensor) -> None:
        again.update({name} & first.keys())
        first.setdefault(name, (inputs, inputs._version))  # in place it becomes another one

    with watching(modules, note), torch.no_grad():
        run()
    groups: list[list[str]] = []
    last: tuple[Tensor, int, object] | None = None
    for name, (inputs, version) in first.items():
        read = (inputs, version, _reading(modules[name]))
        same = last is not None and inputs is last[0] and read[1:] == last[1:]
        if same and name not in again and groups[-1][-1] not in again:
            groups[-1].append(name)
        else:
            groups.append([name])
        last = read
    return [Group(tuple(names), not again.intersection(names)) for names in groups]


def _reading(module: nn.Module) -> object:
    """The geometry of a convolution: with another one it reads other patches."""
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return None
    how = (module.kernel_size, module.stride, module.padding, module.dilation)
    return (*how, module.groups, module.padding_mode)


def inputs_of(run: Run, modules: Mapping[str, nn.Module], group: Group) -> list[Tensor]:
    """The inputs of a group's modules, call by call."""
    found: list[Tensor] = []

    def take(_: str, inputs: Tensor) -> None:
        found.append(inputs)
        if group.once:
            raise Stop

    name = group.names[0]
    with _hooked({name: (modules[name], take, None)}):
        until_stop(run)
    return found


def outputs_of(run: Run, modules: Mapping[str, nn.Module], group: Group) -> list[dict[str, Tensor]]:
    """The outputs of a group's modules, call by call; as `inputs_of`."""
    found: dict[str, list[Tensor]] = {name: [] for name in group.names}

    def take(name: str, output: Tensor) -> None:
        found[name].append(output)
        if group.once and all(found.values()):
            raise Stop

    with _hooked({name: (modules[name], None, take) for name in group.names}):
        until_stop(run)
    calls = len(found[group.names[0]])
    return [{name: found[name][call] for name in group.names} for call in range(calls)]


@contextmanager
def watching(
    modules: Mapping[str, nn.Module], look: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call ``look(name, inputs)`` whenever one of the modules is called."""
    with _hooked({name: (module, look, None) for name, module in modules.items()}):
        yield


@contextmanager
def recorded_calls(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Call]]:
    """Note arguments and result of each module's first call."""
    calls: dict[str, Call] = {}
    handles = []
    for name, module in modules.items():

        def record(
            _: nn.Module,
            args: Arguments,
            kwargs: dict[str, object],
            result: object,
            name: str = name,
        ) -> None:
            calls.setdefault(name, (args, kwargs, _find_tensor(result)))

        handles.append(module.register_forward_hook(record, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


Call = tuple[Arguments, dict[str, object], Tensor | None]
"""Positional arguments, keyword arguments, first tensor of the result (None where it has none)."""


def first_tensor(result: object) -> Tensor:
    """The tensor that a module passes on: its result, or the first tensor inside it.

    Raises:
        CalibrationError: there is none.
    """
    found = _find_tensor(result)
    if found is None:
        raise CalibrationError(
            f"a module returns {type(result).__name__} without a tensor inside; "
            f"give a model that returns tensors"
        )
    return found


def _find_tensor(result: object) -> Tensor | None:
    if isinstance(result, Tensor):
        return result
    items: Iterable[object] = ()
    if isinstance(result, Mapping):
        items = result.values()
    elif isinstance(result, (tuple, list)):
        items = result
    return next((found for item in items if (found := _find_tensor(item)) is not None), None)


def tensors_of(result: object) -> list[Tensor]:
    """All tensors in what a model returns: in tuples, lists, dicts and objects with attributes."""
    if isinstance(result, Tensor):
        return [result]
    parts: Iterable[object] = ()
    if isinstance(result, Mapping):
        parts = result.values()
    elif isinstance(result, (list, tuple, set)):
        parts = result
    elif hasattr(result, "__dict__") and not isinstance(result, (nn.Module, type)):
        parts = vars(result).values()
    return [tensor for part in parts for tensor in tensors_of(part)]


def predictions_in(result: object) -> list[Tensor]:
    """The predictions in a model's result: logits, last hidden states, or all its float tensors.

    Raises:
        ModelError: it returns no tensor of floats.
    """
    for name in ("logits", "last_hidden_state"):
        named = result.get(name) if isinstance(result, Mapping) else None
        predicted = getattr(result, name, named)
        if isinstance(predicted, Tensor):
            return [predicted]
    found = [part for part in tensors_of(result) if part.is_floating_point() and part.dim()]
    if not found:
        raise ModelError(
            f"the model returns {type(result).__name__} without a tensor of floats; return logits"
        )
    return found


Look = Callable[[str, Tensor], None]


@contextmanager
def _hooked(hooks: Mapping[str, tuple[nn.Module, Look | None, Look | None]]) -> Iterator[None]:
    handles = []
    for name, (module, before, after) in hooks.items():
        if before is not None:

            def on_input(
                _: nn.Module, args: Arguments, name: str = name, before: Look = before
            ) -> None:
                before(name, args[0])

            handles.append(module.register_forward_pre_hook(on_input))
        if after is not None:

            def on_output(
                _: nn.Module, args: Arguments, out: object, name: str = name, after: Look = after
            ) -> None:
                after(name, first_tensor(out))

            handles.append(module.register_forward_hook(on_output))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def until_stop(run: Run) -> None:
    """Run until a hook raises `Stop`, or to the end."""
    with torch.no_grad():
        try:
            run()
        except Stop:
            return
