"""What a forward pass calls: the order of the layers, the positions of each, norms behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from hfcompress.shrinking.channels.labels import Vector
from hfcompress.shrinking.channels.sides import LAYERS, is_norm


class CallRecord:
    """What the modules of a model were seen doing in one forward pass.

    Args:
        model: not changed.

    Attributes:
        order: paths of all modules that were called, in order.
        positions: for each layer, how often its weight is applied for one row.
        normed: for each norm the labels of its channels.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._stack: list[str] = []
        self._made: dict[int, tuple[str, Tensor]] = {}  # a tensor that lives keeps its id
        self._read: dict[int, str] = {}
        self.order: dict[str, int] = {}
        self.positions: dict[str, float] = {}
        self.normed: dict[str, Vector] = {}

    def path(self) -> str:
        """The path of the module that is running."""
        return self._stack[-1] if self._stack else ""

    def note_norm(self, vector: Vector) -> None:
        """Note the labels that a norm works on, where a module makes it."""
        if is_norm(self._modules[self.path()]):
            self.normed[self.path()] = vector

    def followers(self, uses: Mapping[int, int]) -> dict[str, str]:
        """For each layer whose outputs a batch norm alone reads, the batch norm.

        Args:
            uses: how many operators have read each tensor.
        """
        return {
            name: self._read[tensor]
            for tensor, (name, _) in self._made.items()
            if tensor in self._read and uses.get(tensor) == 1
        }

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the calls inside."""
        handles = []
        for name, module in self._modules.items():
            handles.append(module.register_forward_pre_hook(partial(self._enter, name)))
            handles.append(module.register_forward_hook(partial(self._leave, name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module, args: tuple[object, ...]) -> None:
        self._stack.append(name)
        self.order.setdefault(name, len(self.order))
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) and args:
            self._read[id(args[0])] = name

    def _leave(self, name: str, module: nn.Module, args: object, output: object) -> None:
        self._stack.pop()
        if isinstance(module, LAYERS) and isinstance(output, Tensor):
            outputs = module.weight.shape[0]
            applied = output.numel() / outputs / len(output)
            self.positions[name] = self.positions.get(name, 0.0) + applied
            self._made[id(output)] = name, output
