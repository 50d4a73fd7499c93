"""Networks of `network_matrix`: attention, norms, buffers and bare parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from benchmarks._networks import ROWS, TOKENS, Net, conv, network, pooled

# Attention


class Attention(nn.Module):
    """Attention between tokens as people write it, with heads of a fixed number."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens."""
        rows, length, _ = x.shape
        q, k, v = (
            f(x).view(rows, length, self.heads, -1).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        found: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, length, -1))
        return found


def _tokens(m: Any, x: Tensor) -> Tensor:
    found: Tensor = m.patches(x).flatten(2).transpose(1, 2)
    return found


def _transformer(attention: nn.Module, mixed: Any) -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x = _tokens(m, x)
        x = x + mixed(m.attention, m.norm1(x))
        return m.head((x + m.fc2(F.gelu(m.fc1(m.norm2(x))))).mean(1))

    return Net(
        run,
        patches=nn.Conv2d(3, 16, 4, 4),
        attention=attention,
        norm1=nn.LayerNorm(16),
        norm2=nn.LayerNorm(16),
        fc1=nn.Linear(16, 64),
        fc2=nn.Linear(64, 16),
        head=nn.Linear(16, 5),
    )


@network()
def attention_of_one_head() -> nn.Module:
    return _transformer(Attention(16, 1), lambda layer, x: layer(x))


@network()
def attention_of_four_heads() -> nn.Module:
    return _transformer(Attention(16, 4), lambda layer, x: layer(x))


@network()
def attention_of_torch() -> nn.Module:
    return _transformer(
        nn.MultiheadAttention(16, 4, batch_first=True), lambda layer, x: layer(x, x, x)[0]
    )


@network()
def transformer_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 64, batch_first=True)
    return Net(
        lambda m, x: m.head(m.body(_tokens(m, x)).mean(1)),
        patches=nn.Conv2d(3, 16, 4, 4),
        body=nn.TransformerEncoder(layer, 2),
        head=nn.Linear(16, 5),
    )


@network(TOKENS)
def transformer_of_words() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 64, batch_first=True, norm_first=True)
    return Net(
        lambda m, x: m.head(m.body(m.words(x) + m.places).mean(1)),
        words=nn.Embedding(20, 16),
        places=nn.Parameter(torch.randn(12, 16)),
        body=nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
        head=nn.Linear(16, 5),
    )


@network()
def non_local() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x = m.stem(x).relu()
        q, k, v = (f(x).flatten(2) for f in (m.q, m.k, m.v))
        mixed = (v @ (q.mT @ k).softmax(-1).mT).view(len(x), -1, *x.shape[2:])
        return m.head(pooled(m.last(x + m.out(mixed)).relu()))

    return Net(
        run,
        stem=conv(3, 16),
        q=conv(16, 8, 1),
        k=conv(16, 8, 1),
        v=conv(16, 8, 1),
        out=conv(8, 16, 1),
        last=conv(16, 24),
        head=nn.Linear(24, 5),
    )


@network()
def mixer() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x = _tokens(m, x)
        x = x + m.across2(m.across1(m.norm1(x).transpose(1, 2)).relu()).transpose(1, 2)
        return m.head((x + m.fc2(m.fc1(m.norm2(x)).relu())).mean(1))

    return Net(
        run,
        patches=nn.Conv2d(3, 16, 4, 4),
        norm1=nn.LayerNorm(16),
        norm2=nn.LayerNorm(16),
        across1=nn.Linear(16, 24),
        across2=nn.Linear(24, 16),
        fc1=nn.Linear(16, 32),
        fc2=nn.Linear(32, 16),
        head=nn.Linear(16, 5),
    )


# Attention over channels


@network()
def squeeze_and_excitation() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x = m.a(x).relu()
        scale = m.up(m.down(pooled(x)).relu()).sigmoid()
        return m.head(pooled(m.b(x * scale[:, :, None, None]).relu()))

    return Net(
        run,
        a=conv(3, 24),
        down=nn.Linear(24, 8),
        up=nn.Linear(8, 24),
        b=conv(24, 16),
        head=nn.Linear(16, 5),
    )


@network()
def spatial_attention() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x = m.b(m.a(x).relu()).relu()
        where = m.where(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()
        return m.head(pooled(x * where))

    return Net(run, a=conv(3, 16), b=conv(16, 24), where=conv(2, 1, 7), head=nn.Linear(24, 5))


@network()
def efficient_channel_attention() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x = m.b(m.a(x).relu()).relu()
        scale = m.along(pooled(x)[:, None]).sigmoid()[:, 0, :, None, None]
        return m.head(pooled(x * scale))

    return Net(
        run,
        a=conv(3, 16),
        b=conv(16, 24),
        along=nn.Conv1d(1, 1, 3, padding=1),
        head=nn.Linear(24, 5),
    )


@network()
def softmax_over_channels() -> nn.Module:
    return Net(
        lambda m, x: m.head(pooled(m.c(m.b(m.a(x).relu()).softmax(1)).relu())),
        a=conv(3, 16),
        b=conv(16, 24),
        c=conv(24, 12),
        head=nn.Linear(12, 5),
    )


# Norms, buffers and bare parameters


@network()
def layer_norm_of_channels() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        y = m.norm(m.depth(x).permute(0, 2, 3, 1))
        return m.head(pooled(x + (m.scale * m.down(F.gelu(m.up(y)))).permute(0, 3, 1, 2)))

    return Net(
        run,
        stem=conv(3, 16),
        depth=conv(16, 16, 7, groups=16),
        norm=nn.LayerNorm(16),
        up=nn.Linear(16, 48),
        down=nn.Linear(48, 16),
        scale=nn.Parameter(torch.randn(16)),
        head=nn.Linear(16, 5),
    )


@network()
def group_norm() -> nn.Module:
    return nn.Sequential(
        conv(3, 16),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        conv(16, 24),
        nn.GroupNorm(1, 24),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


@network()
def instance_norm() -> nn.Module:
    return nn.Sequential(
        conv(3, 16),
        nn.InstanceNorm2d(16, affine=True),
        nn.ReLU(),
        conv(16, 24),
        nn.InstanceNorm2d(24),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


@network()
def norms_without_parameters() -> nn.Module:
    return nn.Sequential(
        conv(3, 16),
        nn.BatchNorm2d(16, affine=False),
        nn.ReLU(),
        conv(16, 24),
        nn.GroupNorm(2, 24, affine=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(24, elementwise_affine=False),
        nn.Linear(24, 5),
    )


@network(ROWS)
def rms_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(10, 32), nn.RMSNorm(32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5)
    )


@network()
def local_response_norm() -> nn.Module:
    return nn.Sequential(
        conv(3, 16),
        nn.ReLU(),
        nn.LocalResponseNorm(3),
        conv(16, 24),
        nn.ReLU(),
        conv(24, 16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


@network()
def buffer_for_each_channel() -> nn.Module:
    return Net(
        lambda m, x: m.head(pooled(m.b((m.a(x) * m.scale + m.shift).relu()).relu())),
        a=conv(3, 16),
        b=conv(16, 24),
        scale=torch.rand(1, 16, 1, 1) + 0.5,
        shift=torch.randn(16, 1, 1),
        head=nn.Linear(24, 5),
    )


@network()
def prelu_for_each_channel() -> nn.Module:
    return nn.Sequential(
        conv(3, 16),
        nn.PReLU(16),
        conv(16, 24),
        nn.PReLU(24),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


@network()
def constant_for_each_channel() -> nn.Module:
    return Net(
        lambda m, x: m.head(
            pooled(m.b(m.a(x).relu() * torch.linspace(0.5, 1.5, 16)[:, None, None]).relu())
        ),
        a=conv(3, 16),
        b=conv(16, 24),
        head=nn.Linear(24, 5),
    )


@network()
def convolution_by_function() -> nn.Module:
    return Net(
        lambda m, x: m.head(pooled(F.conv2d(m.a(x).relu(), m.kernel, m.bias, padding=1).relu())),
        a=conv(3, 16),
        kernel=nn.Parameter(torch.randn(24, 16, 3, 3)),
        bias=nn.Parameter(torch.randn(24)),
        head=nn.Linear(24, 5),
    )


@network(ROWS)
def product_by_einsum() -> nn.Module:
    return Net(
        lambda m, x: m.head(torch.einsum("bi,oi->bo", m.a(x).relu(), m.weight).relu()),
        a=nn.Linear(10, 32),
        weight=nn.Parameter(torch.randn(24, 32)),
        head=nn.Linear(24, 5),
    )


@network()
def normed_weights() -> nn.Module:
    return nn.Sequential(
        weight_norm(conv(3, 16)),
        nn.ReLU(),
        conv(16, 24),
        nn.ReLU(),
        conv(24, 16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


@network(ROWS)
def bilinear() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.c(m.both(m.a(x).relu(), m.b(x).relu()).relu()).relu()),
        a=nn.Linear(10, 16),
        b=nn.Linear(10, 12),
        both=nn.Bilinear(16, 12, 24),
        c=nn.Linear(24, 32),
        head=nn.Linear(32, 5),
    )
