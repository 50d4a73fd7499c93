"""Networks of `network_matrix`: chains, residual connections, groups and shuffles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._networks import ROWS, Net, conv, network, pooled

# Chains


@network()
def chain() -> nn.Module:
    return Net(
        lambda m, x: m.head(pooled(m.b(m.a(x).relu()).relu())),
        a=conv(3, 16),
        b=conv(16, 24),
        head=nn.Linear(24, 5),
    )


@network()
def conv_norm_relu() -> nn.Module:
    return nn.Sequential(
        conv(3, 16, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        conv(16, 24, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


@network()
def vgg() -> nn.Module:
    return nn.Sequential(
        conv(3, 16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        conv(16, 24),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24 * 16, 32),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(32, 5),
    )


@network(ROWS)
def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 5)
    )


@network(ROWS)
def mlp_batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(10, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 24),
        nn.BatchNorm1d(24),
        nn.ReLU(),
        nn.Linear(24, 5),
    )


@network(ROWS)
def gated_mlp() -> nn.Module:
    return Net(
        lambda m, x: m.out(F.silu(m.gate(x)) * m.up(x)),
        gate=nn.Linear(10, 32),
        up=nn.Linear(10, 32),
        out=nn.Linear(32, 5),
    )


@network(ROWS)
def highway() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x, gate = m.first(x).relu(), m.gate(m.first(x)).sigmoid()
        return m.out(gate * m.body(x).relu() + (1 - gate) * x)

    return Net(
        run,
        first=nn.Linear(10, 32),
        gate=nn.Linear(32, 32),
        body=nn.Linear(32, 32),
        out=nn.Linear(32, 5),
    )


@network()
def dropout_of_channels() -> nn.Module:
    return nn.Sequential(
        conv(3, 16),
        nn.ReLU(),
        nn.Dropout2d(0.3),
        conv(16, 24),
        nn.ReLU(),
        nn.Dropout2d(0.3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 5),
    )


# Residual connections


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        conv(inputs, outputs, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        conv(outputs, outputs, bias=False),
        nn.BatchNorm2d(outputs),
    )


@network()
def residual() -> nn.Module:
    return Net(
        lambda m, x: m.head(pooled((m.one(y := m.stem(x).relu()) + y).relu())),
        stem=conv(3, 16),
        one=_block(16, 16),
        head=nn.Linear(16, 5),
    )


@network()
def residual_with_projection() -> nn.Module:
    return Net(
        lambda m, x: m.head(pooled((m.one(y := m.stem(x).relu()) + m.shortcut(y)).relu())),
        stem=conv(3, 16),
        one=_block(16, 24),
        shortcut=conv(16, 24, 1),
        head=nn.Linear(24, 5),
    )


@network()
def residual_bottleneck() -> nn.Module:
    body = nn.Sequential(
        conv(24, 8, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        conv(8, 8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        conv(8, 24, 1),
        nn.BatchNorm2d(24),
    )
    return Net(
        lambda m, x: m.head(pooled((m.body(y := m.stem(x)) + y).relu())),
        stem=conv(3, 24),
        body=body,
        head=nn.Linear(24, 5),
    )


@network()
def residual_norm_first() -> nn.Module:
    body = nn.Sequential(
        nn.BatchNorm2d(16), nn.ReLU(), conv(16, 24), nn.BatchNorm2d(24), nn.ReLU(), conv(24, 16)
    )
    return Net(
        lambda m, x: m.head(pooled(m.body(y := m.stem(x)) + y)),
        stem=conv(3, 16),
        body=body,
        head=nn.Linear(16, 5),
    )


@network()
def shortcut_padded_with_zeros() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x = m.stem(x).relu()
        return m.head(pooled((m.one(x) + F.pad(x, (0, 0, 0, 0, 4, 4))).relu()))

    return Net(run, stem=conv(3, 16), one=_block(16, 24), head=nn.Linear(24, 5))


@network()
def shortcut_joined_with_zeros() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x = m.stem(x).relu()
        return m.head(pooled((m.one(x) + torch.cat([x, torch.zeros_like(x)], 1)).relu()))

    return Net(run, stem=conv(3, 16), one=_block(16, 32), head=nn.Linear(32, 5))


@network()
def shortcut_in_a_buffer_of_zeros() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x, wide = m.stem(x).relu(), m.one(m.stem(x).relu())
        padded = torch.zeros_like(wide)
        padded[:, : x.shape[1]] = x
        return m.head(pooled(m.last((wide + padded).relu())))

    return Net(run, stem=conv(3, 16), one=_block(16, 24), last=conv(24, 12), head=nn.Linear(12, 5))


@network()
def stochastic_depth() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x = m.stem(x).relu()
        drop = x.new_empty(len(x), 1, 1, 1).bernoulli_(0.8) / 0.8 if m.training else 1.0
        return m.head(pooled(x + m.one(x) * drop))

    return Net(run, stem=conv(3, 16), one=_block(16, 16), head=nn.Linear(16, 5))


# Depthwise, grouped and shuffled


@network()
def depthwise_separable() -> nn.Module:
    return nn.Sequential(
        conv(3, 16),
        nn.ReLU(),
        conv(16, 16, groups=16),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        conv(16, 24, 1),
        nn.BatchNorm2d(24),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


@network()
def inverted_residual() -> nn.Module:
    body = nn.Sequential(
        conv(12, 36, 1),
        nn.BatchNorm2d(36),
        nn.Hardswish(),
        conv(36, 36, groups=36),
        nn.BatchNorm2d(36),
        nn.Hardswish(),
        conv(36, 12, 1),
        nn.BatchNorm2d(12),
    )
    return Net(
        lambda m, x: m.head(pooled(m.body(y := m.stem(x)) + y)),
        stem=conv(3, 12),
        body=body,
        head=nn.Linear(12, 5),
    )


@network()
def depthwise_that_doubles() -> nn.Module:
    return nn.Sequential(
        conv(3, 12),
        nn.ReLU(),
        conv(12, 24, groups=12),
        nn.ReLU(),
        conv(24, 8, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


@network()
def grouped() -> nn.Module:
    return nn.Sequential(
        conv(3, 16),
        nn.ReLU(),
        conv(16, 24, groups=4),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        conv(24, 16, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


@network()
def resnext() -> nn.Module:
    body = nn.Sequential(
        conv(24, 16, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        conv(16, 16, groups=4),
        nn.ReLU(),
        conv(16, 24, 1),
    )
    return Net(
        lambda m, x: m.head(pooled((m.body(y := m.stem(x)) + y).relu())),
        stem=conv(3, 24),
        body=body,
        head=nn.Linear(24, 5),
    )


def _shuffled(x: Tensor, groups: int) -> Tensor:
    rows, channels, height, width = x.shape
    return x.view(rows, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


@network()
def shuffle() -> nn.Module:
    return Net(
        lambda m, x: m.head(pooled(m.b(_shuffled(m.a(x).relu(), 4)).relu())),
        a=conv(3, 16),
        b=conv(16, 24),
        head=nn.Linear(24, 5),
    )


@network()
def shuffle_module() -> nn.Module:
    return nn.Sequential(
        conv(3, 16),
        nn.ReLU(),
        nn.ChannelShuffle(2),
        conv(16, 24, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


@network()
def shufflenet() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        one, two = m.stem(x).relu().chunk(2, 1)
        return m.head(pooled(_shuffled(torch.cat([one, m.body(two)], 1), 2)))

    body = nn.Sequential(
        conv(12, 12, 1), nn.ReLU(), conv(12, 12, groups=12), conv(12, 12, 1), nn.ReLU()
    )
    return Net(run, stem=conv(3, 24), body=body, head=nn.Linear(24, 5))


@network()
def pixel_shuffle() -> nn.Module:
    return nn.Sequential(
        conv(3, 16),
        nn.ReLU(),
        conv(16, 48),
        nn.PixelShuffle(2),
        nn.ReLU(),
        conv(12, 8),
        nn.ReLU(),
        conv(8, 3),
    )


@network()
def pixel_unshuffle() -> nn.Module:
    return nn.Sequential(
        conv(3, 8), nn.ReLU(), nn.PixelUnshuffle(2), conv(32, 16), nn.ReLU(), conv(16, 4)
    )


@network()
def space_to_depth() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x = m.a(x).relu()
        return m.head(
            pooled(
                m.b(torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2]], 1)).relu()
            )
        )

    return Net(run, a=conv(3, 8), b=conv(24, 16), head=nn.Linear(16, 5))
