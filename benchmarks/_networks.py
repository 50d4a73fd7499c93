"""Some ninety small networks of the kinds that people write themselves, for `network_matrix`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IMAGES, SOUND, VOLUMES, TOKENS, ROWS = (6, 3, 16, 16), (6, 3, 32), (6, 3, 8, 8, 8), (6, 12), (6, 10)
Forward = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """Modules, parameters and buffers by name, and a function of them and of the input."""

    def __init__(self, forward: Forward, **parts: object) -> None:
        super().__init__()
        self._run = forward
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        """The function's result."""
        return self._run(self, x)


@dataclass(frozen=True)
class Network:
    """How to build a network, and the shape of its input (long integers for tokens)."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = IMAGES

    def inputs(self) -> Tensor:
        """Random rows."""
        if self.shape == TOKENS:
            return torch.randint(0, 20, self.shape)
        return torch.randn(self.shape)


NETWORKS: dict[str, Network] = {}


def network(
    shape: tuple[int, ...] = IMAGES,
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Add a network by the name of the function that builds it."""

    def add(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        NETWORKS[build.__name__] = Network(build, shape)
        return build

    return add


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


def pooled(x: Tensor) -> Tensor:
    """Mean over all positions."""
    return x.flatten(2).mean(2)
