"""Networks of `network_matrix`: concatenation, parts of channels, views, decoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._networks import Net, conv, network, pooled

# Concatenation


@network()
def concat_image_first() -> nn.Module:
    return Net(
        lambda m, x: m.head(pooled(m.b(torch.cat([x, m.a(x).relu()], 1)).relu())),
        a=conv(3, 16),
        b=conv(19, 24),
        head=nn.Linear(24, 5),
    )


@network()
def concat_image_last() -> nn.Module:
    return Net(
        lambda m, x: m.head(pooled(m.b(torch.cat([m.a(x).relu(), x], 1)).relu())),
        a=conv(3, 16),
        b=conv(19, 24),
        head=nn.Linear(24, 5),
    )


@network()
def coordinates_first() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        rows, _, height, width = x.shape
        line = torch.linspace(-1, 1, width).expand(rows, 1, height, width)
        return m.head(pooled(m.b(torch.cat([line, line.mT, m.a(x).relu()], 1)).relu()))

    return Net(run, a=conv(3, 16), b=conv(18, 24), head=nn.Linear(24, 5))


@network()
def dense_block() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        found = m.stem(x)
        for layer in m.layers:
            found = torch.cat([found, layer(found)], 1)
        return m.head(pooled(found.relu()))

    layers = [nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), conv(n, 12)) for n in (16, 28)]
    return Net(run, stem=conv(3, 16), layers=nn.ModuleList(layers), head=nn.Linear(40, 5))


@network()
def inception() -> nn.Module:
    return Net(
        lambda m, x: m.head(
            pooled(
                torch.cat(
                    [m.one(y := m.stem(x).relu()), m.three(y), m.five(y), m.pool(y)], 1
                ).relu()
            )
        ),
        stem=conv(3, 16),
        one=conv(16, 8, 1),
        three=nn.Sequential(conv(16, 6, 1), conv(6, 12)),
        five=nn.Sequential(conv(16, 4, 1), conv(4, 8, 5)),
        pool=nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(16, 4, 1)),
        head=nn.Linear(32, 5),
    )


@network()
def fire() -> nn.Module:
    return Net(
        lambda m, x: pooled(
            m.head(torch.cat([m.a(y := m.squeeze(m.stem(x).relu()).relu()), m.b(y)], 1).relu())
        ),
        stem=conv(3, 16),
        squeeze=conv(16, 8, 1),
        a=conv(8, 12, 1),
        b=conv(8, 12),
        head=conv(24, 5, 1),
    )


@network()
def unet() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        one = m.down1(x).relu()
        two = m.down2(F.max_pool2d(one, 2)).relu()
        low = m.low(F.max_pool2d(two, 2)).relu()
        up = m.up2(torch.cat([m.wide2(low), two], 1)).relu()
        return m.head(m.up1(torch.cat([m.wide1(up), one], 1)).relu())

    return Net(
        run,
        down1=conv(3, 8),
        down2=conv(8, 16),
        low=conv(16, 24),
        wide2=nn.ConvTranspose2d(24, 16, 2, 2),
        up2=conv(32, 16),
        wide1=nn.ConvTranspose2d(16, 8, 2, 2),
        up1=conv(16, 8),
        head=conv(8, 2, 1),
    )


@network()
def feature_pyramid() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        one = m.a(x).relu()
        two = m.b(F.avg_pool2d(one, 2)).relu()
        top = m.side2(two)
        return [m.out(m.side1(one) + F.interpolate(top, scale_factor=2)), m.out(top)]

    return Net(
        run,
        a=conv(3, 16),
        b=conv(16, 24),
        side1=conv(16, 12, 1),
        side2=conv(24, 12, 1),
        out=conv(12, 4),
    )


# Parts of channels


@network()
def glu() -> nn.Module:
    return nn.Sequential(
        conv(3, 32),
        nn.GLU(1),
        conv(16, 24),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


@network()
def chunk_gate() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        value, gate = m.a(x).chunk(2, 1)
        return m.head(pooled(m.b(value * gate.sigmoid()).relu()))

    return Net(run, a=conv(3, 32), b=conv(16, 24), head=nn.Linear(24, 5))


@network()
def split_by_number() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        one, two = m.a(x).relu().split([8, 16], 1)
        return m.head(pooled(m.b(one).relu() + m.c(two).relu()))

    return Net(run, a=conv(3, 24), b=conv(8, 16), c=conv(16, 16), head=nn.Linear(16, 5))


@network()
def cross_stage_partial() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        one, two = m.stem(x).relu().chunk(2, 1)
        return m.head(pooled(m.last(torch.cat([one, m.body(two).relu()], 1)).relu()))

    return Net(
        run, stem=conv(3, 24), body=conv(12, 12), last=conv(24, 16, 1), head=nn.Linear(16, 5)
    )


@network()
def halves_by_slices() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x = m.a(x).relu()
        half = x.shape[1] // 2
        return m.head(pooled(m.b(x[:, :half]) * m.c(x[:, half:])))

    return Net(run, a=conv(3, 24), b=conv(12, 16), c=conv(12, 16), head=nn.Linear(16, 5))


@network()
def every_other_channel() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x = m.a(x).relu()
        return m.head(pooled(m.b(x[:, ::2]).relu() + m.c(x[:, 1::2]).relu()))

    return Net(run, a=conv(3, 24), b=conv(12, 16), c=conv(12, 16), head=nn.Linear(16, 5))


@network()
def maxout() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x = m.a(x)
        return m.head(pooled(m.b(x.view(len(x), -1, 2, *x.shape[2:]).amax(2)).relu()))

    return Net(run, a=conv(3, 32), b=conv(16, 24), head=nn.Linear(24, 5))


# Views


@network()
def view_of_a_fixed_width() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.fc(F.max_pool2d(m.b(m.a(x).relu()).relu(), 4).view(-1, 384)).relu()),
        a=conv(3, 16),
        b=conv(16, 24),
        fc=nn.Linear(384, 32),
        head=nn.Linear(32, 5),
    )


@network()
def view_of_the_rest() -> nn.Module:
    return Net(
        lambda m, x: m.fc(F.max_pool2d(m.a(x).relu(), 4).view(x.size(0), -1)),
        a=conv(3, 16),
        fc=nn.Linear(256, 5),
    )


@network()
def pixels_as_tokens() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.fc(m.a(x).relu().flatten(2).transpose(1, 2)).relu().mean(1)),
        a=conv(3, 16),
        fc=nn.Linear(16, 24),
        head=nn.Linear(24, 5),
    )


@network()
def height_into_channels() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x = F.max_pool2d(m.a(x).relu(), 4)
        return m.head(m.fc(x.permute(0, 3, 1, 2).flatten(2)).relu().mean(1))

    return Net(run, a=conv(3, 16), fc=nn.Linear(64, 24), head=nn.Linear(24, 5))


@network()
def repeat() -> nn.Module:
    return Net(
        lambda m, x: m.head(pooled(m.b(m.a(x).relu().repeat(1, 2, 1, 1)).relu())),
        a=conv(3, 12),
        b=conv(24, 16),
        head=nn.Linear(16, 5),
    )


@network()
def repeat_interleave() -> nn.Module:
    return Net(
        lambda m, x: m.head(pooled(m.b(m.a(x).relu().repeat_interleave(2, 1)).relu())),
        a=conv(3, 12),
        b=conv(24, 16),
        head=nn.Linear(16, 5),
    )


@network()
def expand_to_a_fixed_width() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        y = m.a(x).relu()
        return m.head(pooled(m.b(y + y.mean((2, 3), keepdim=True).expand(-1, 16, -1, -1)).relu()))

    return Net(run, a=conv(3, 16), b=conv(16, 24), head=nn.Linear(24, 5))


@network()
def unfolded_patches() -> nn.Module:
    return Net(
        lambda m, x: m.head(
            m.fc(F.unfold(m.a(x).relu(), 4, stride=4).transpose(1, 2)).relu().mean(1)
        ),
        a=conv(3, 8),
        fc=nn.Linear(128, 24),
        head=nn.Linear(24, 5),
    )


# Decoders


@network()
def transposed() -> nn.Module:
    return nn.Sequential(
        conv(3, 16),
        nn.ReLU(),
        conv(16, 24),
        nn.ReLU(),
        nn.ConvTranspose2d(24, 16, 4, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        conv(16, 2, 1),
    )


@network()
def transposed_in_groups() -> nn.Module:
    return nn.Sequential(
        conv(3, 16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 24, 2, 2, groups=4),
        nn.ReLU(),
        conv(24, 2, 1),
    )


@network()
def autoencoder() -> nn.Module:
    return nn.Sequential(
        conv(3, 16, stride=2),
        nn.ReLU(),
        conv(16, 24, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, 32),
        nn.ReLU(),
        nn.Linear(32, 256),
        nn.Unflatten(1, (16, 4, 4)),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 2, 2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 3, 2, 2),
    )


@network()
def resized() -> nn.Module:
    return nn.Sequential(
        conv(3, 16),
        nn.ReLU(),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        conv(16, 12),
        nn.ReLU(),
        nn.ReflectionPad2d(1),
        nn.Conv2d(12, 2, 3),
    )
