"""Networks as courses and papers write them, none of transformers: small, seeded, with examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mlp(nn.Module):
    """Takes ``x``; dropout by the module's own mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 32), nn.Linear(32, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.first(x).relu(), 0.2, self.training)
        found: Tensor = self.last(self.second(x).relu())
        return found


class CourseStudent(nn.Module):
    """136,874 parameters on 3x32x32, as a course on compression writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1, self.fc2 = nn.Linear(32 * 8 * 8, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 2048)
        found: Tensor = self.fc2(F.relu(self.fc1(x)))
        return found


class CourseTeacher(nn.Module):
    """750,346 parameters on 3x32x32; a ``view`` of a fixed width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 128, 3, padding=1)
        self.conv3 = nn.Conv2d(128, 128, 3, padding=1)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1, self.fc2 = nn.Linear(128 * 4 * 4, 256), nn.Linear(256, 10)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = self.pool(F.relu(self.conv3(x)))
        x = x.view(-1, 2048)
        found: Tensor = self.fc2(self.dropout(F.relu(self.fc1(x))))
        return found


class Block(nn.Module):
    """Two convolutions and a shortcut, as in ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + identity)


class Residual(nn.Module):
    """A stem and two blocks; gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8, 8), Block(8, 16, 2))
        self.head = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.blocks(F.relu(self.stem(images)))
        return {"logits": self.head(features.mean((2, 3))), "features": features}


class ResNet(nn.Module):
    """The layout of torchvision's: conv1, bn1, maxpool, layer1 ..., avgpool, fc."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(8, 8), Block(8, 8))
        self.layer2 = nn.Sequential(Block(8, 16, 2), Block(16, 16))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.avgpool(self.layer2(self.layer1(x)))
        found: Tensor = self.fc(torch.flatten(x, 1))
        return found


class Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise, project."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * 3
        self.use_res_connect = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden), nn.ReLU6(),
            nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(x)
        return x + found if self.use_res_connect else found


class MobileNet(nn.Module):
    """The layout of torchvision's MobileNetV2: features and classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
            Inverted(8, 8, 1), Inverted(8, 12, 2), Inverted(12, 12, 1),
            nn.Sequential(nn.Conv2d(12, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        found: Tensor = self.classifier(F.adaptive_avg_pool2d(features, (1, 1)).flatten(1))
        return found


class Signals(nn.Module):
    """Conv1d and GRU over a signal of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, 8, 5, padding=2)
        self.norm = nn.BatchNorm1d(8)
        self.conv2 = nn.Conv1d(8, 12, 3, stride=2, padding=1)
        self.gru = nn.GRU(12, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, signal: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.norm(self.conv1(signal)))))
        states, _ = self.gru(x.transpose(1, 2))
        found: Tensor = self.head(states[:, -1])
        return found


@dataclass
class Tags:
    """What `Tagger` gives."""

    logits: Tensor
    states: Tensor


class Tagger(nn.Module):
    """Embedding and LSTM: a label for each token, in a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 12)
        self.lstm = nn.LSTM(12, 16, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Tags:
        states, _ = self.lstm(self.embedding(tokens))
        return Tags(self.tags(states), states)


class Encoder(nn.Module):
    """A small ``nn.TransformerEncoder`` over tokens, whose output is a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        states = self.encoder(self.embedding(tokens) * scale)
        return self.head(states.mean(1)), states


@dataclass(frozen=True)
class Network:
    """A kind of module: how it is made, its inputs, its labels."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], Tensor]
    classes: int
    tokens: bool = False

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make().eval()

    def rows(self, count: int = 24, seed: int = 1) -> tuple[Tensor, Tensor]:
        """Inputs and labels."""
        x = self.inputs(count, seed)
        shape = x.shape if self.tokens else (count,)
        draw = torch.Generator().manual_seed(seed + 1)
        return x, torch.randint(0, self.classes, shape, generator=draw)

    def loader(self, count: int = 24, batch: int = 8, seed: int = 1) -> Any:
        """A DataLoader of tuples."""
        data = torch.utils.data.TensorDataset(*self.rows(count, seed))
        return torch.utils.data.DataLoader(data, batch_size=batch)


def _floats(*shape: int) -> Callable[[int, int], Tensor]:
    return lambda count, seed: torch.randn(
        count, *shape, generator=torch.Generator().manual_seed(seed)
    )


def _tokens(count: int, seed: int) -> Tensor:
    return torch.randint(0, 40, (count, 7), generator=torch.Generator().manual_seed(seed))


NETWORKS: dict[str, Network] = {
    "mlp": Network(Mlp, _floats(12), 3),
    "course student": Network(CourseStudent, _floats(3, 32, 32), 10),
    "course teacher": Network(CourseTeacher, _floats(3, 32, 32), 10),
    "residual": Network(Residual, _floats(3, 12, 12), 4),
    "conv1d and gru": Network(Signals, _floats(1, 30), 3),
    "lstm tagger": Network(Tagger, _tokens, 5, tokens=True),
    "transformer encoder": Network(Encoder, _tokens, 3),
    "resnet": Network(ResNet, _floats(3, 32, 32), 4),
    "mobilenet": Network(MobileNet, _floats(3, 32, 32), 4),
}
