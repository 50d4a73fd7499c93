"""Networks of `network_matrix`: sequences, volumes, recurrent tails, several outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._networks import SOUND, TOKENS, VOLUMES, Net, conv, network, pooled

# Other dimensions


@network(SOUND)
def sound() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 16, 5, padding=2),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(16, 24, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


@network(SOUND)
def temporal() -> nn.Module:
    return Net(
        lambda m, x: m.head((m.b(F.pad(y := m.a(x).relu(), (4, 0))).relu() + y)[..., -1]),
        a=nn.Conv1d(3, 16, 1),
        b=nn.Conv1d(16, 16, 3, dilation=2),
        head=nn.Linear(16, 5),
    )


@network(VOLUMES)
def volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(3, 12, 3, padding=1),
        nn.BatchNorm3d(12),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(12, 16, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


@network(VOLUMES)
def frames() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.b(m.a(x).relu().mean((3, 4))).relu().mean(2)),
        a=nn.Conv3d(3, 16, (1, 3, 3)),
        b=nn.Conv1d(16, 24, 3),
        head=nn.Linear(24, 5),
    )


# Recurrent tails


def _columns(m: Any, x: Tensor) -> Any:
    return m.b(m.a(x).relu()).relu().mean(2).transpose(1, 2)


def _recurrent(kind: type[nn.RNNBase], last: bool, **options: Any) -> nn.Module:
    width = 24 * (2 if options.get("bidirectional") else 1)
    tail = kind(16, 24, batch_first=True, **options)  # type: ignore[arg-type]
    return Net(
        lambda m, x: m.out(m.tail(_columns(m, x))[0][:, -1] if last else m.tail(_columns(m, x))[0]),
        a=conv(3, 16),
        b=conv(16, 16),
        tail=tail,
        out=nn.Linear(width, 5),
    )


@network()
def lstm_tail() -> nn.Module:
    return _recurrent(nn.LSTM, last=False)


@network()
def gru_tail() -> nn.Module:
    return _recurrent(nn.GRU, last=True)


@network()
def lstm_both_ways() -> nn.Module:
    return _recurrent(nn.LSTM, last=True, bidirectional=True)


@network()
def two_layers_of_rnn() -> nn.Module:
    return _recurrent(nn.RNN, last=True, num_layers=2)


@network(TOKENS)
def embedding_lstm() -> nn.Module:
    return Net(
        lambda m, x: m.out(m.fc(m.tail(m.words(x))[0][:, -1]).relu()),
        words=nn.Embedding(20, 16),
        tail=nn.LSTM(16, 24, batch_first=True),
        fc=nn.Linear(24, 32),
        out=nn.Linear(32, 5),
    )


# Outputs and shared parts


@network()
def two_heads() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        found = pooled(m.b(m.a(x).relu()).relu())
        return m.one(found), m.two(found)

    return Net(run, a=conv(3, 16), b=conv(16, 24), one=nn.Linear(24, 5), two=nn.Linear(24, 3))


@network()
def returned_features() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        found = m.b(m.a(x).relu()).relu()
        return m.head(pooled(found)), found

    return Net(run, a=conv(3, 16), b=conv(16, 24), head=nn.Linear(24, 5))


@network()
def named_outputs() -> nn.Module:
    return Net(
        lambda m, x: {"logits": m.head(pooled(m.b(m.a(x).relu()).relu()))},
        a=conv(3, 16),
        b=conv(16, 24),
        head=nn.Linear(24, 5),
    )


@network()
def head_for_training() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        low = m.a(x).relu()
        found = m.head(pooled(m.b(low).relu()))
        return (found, m.side(pooled(m.c(low)))) if m.training else found

    return Net(
        run,
        a=conv(3, 16),
        b=conv(16, 24),
        c=conv(16, 12),
        head=nn.Linear(24, 5),
        side=nn.Linear(12, 5),
    )


@network()
def one_layer_called_twice() -> nn.Module:
    return Net(
        lambda m, x: m.head(pooled(m.b(m.b(m.a(x).relu()).relu()).relu())),
        a=conv(3, 16),
        b=conv(16, 16),
        head=nn.Linear(16, 5),
    )


@network()
def one_weight_in_two_layers() -> nn.Module:
    model = Net(
        lambda m, x: m.head(pooled(m.c(m.b(m.a(x).relu()).relu()).relu())),
        a=conv(3, 16),
        b=conv(16, 16),
        c=conv(16, 16),
        head=nn.Linear(16, 5),
    )
    model.get_submodule("c").weight = model.get_submodule("b").weight
    return model


@network()
def siamese() -> nn.Module:
    return Net(
        lambda m, x: m.head((pooled(m.body(x)) - pooled(m.body(x.flip(-1)))).abs()),
        body=nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 24), nn.ReLU()),
        head=nn.Linear(24, 5),
    )


# Words


@network(TOKENS)
def words_and_convolutions() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        x = m.words(x).transpose(1, 2)
        return m.head(torch.cat([f(x).relu().amax(2) for f in (m.two, m.three)], 1))

    return Net(
        run,
        words=nn.Embedding(20, 16),
        two=nn.Conv1d(16, 12, 2),
        three=nn.Conv1d(16, 12, 3),
        head=nn.Linear(24, 5),
    )


@network(TOKENS)
def bag_of_words() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.fc(m.words(x).mean(1)).relu()),
        words=nn.Embedding(20, 32),
        fc=nn.Linear(32, 24),
        head=nn.Linear(24, 5),
    )
