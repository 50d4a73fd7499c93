"""What the course's rows and studies share: Fashion-MNIST, plain training, what is kept."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks._figures import Figure, kept_figures, parse_arguments, report
from hfcompress import keep_zeros, load_module, save_module, train_one_epoch
from hfcompress.data.image_formats import read_array
from hfcompress.errors import MissingExtraError
from hfcompress.inference import logits_in
from hfcompress.measure.comparison import compare_right
from hfcompress.measure.environment import bf16_is_faster
from hfcompress.measure.evaluation import confidence_interval
from hfcompress.quantization.model import QuantizedModel
from hfcompress.utils import quiet_libraries

DATA = "/usr/share/datasets/fashion-mnist"
FILES = {"train": "train", "test": "t10k"}
MEAN, STD = 0.286, 0.353
BATCH = 128
Batches = DataLoader[tuple[Tensor, ...]]
Right = NDArray[np.bool_]
"""[rows], whether a model's class is the right one."""


@dataclass(frozen=True)
class Setting:
    """What all rows share.

    Attributes:
        work: folder of trained modules and rows.
        data: folder with the four IDX files of Fashion-MNIST.
    """

    work: Path
    data: Path = Path(DATA)

    @cached_property
    def train(self) -> TensorDataset:
        """60,000 images [3, 32, 32] and their classes."""
        return self._split("train")

    @cached_property
    def test(self) -> TensorDataset:
        """10,000 images that are only measured on."""
        return self._split("test")

    def _split(self, side: str) -> TensorDataset:
        pixels = read_array(self.data / f"{FILES[side]}-images-idx3-ubyte.gz")
        labels = read_array(self.data / f"{FILES[side]}-labels-idx1-ubyte.gz")
        images = F.pad(torch.from_numpy(pixels.copy()).float() / 255, (2, 2, 2, 2))
        images = ((images - MEAN) / STD)[:, None].expand(-1, 3, -1, -1)  # a view: no copies
        return TensorDataset(images, torch.from_numpy(labels.astype(np.int64)))

    def loader(self, seed: int = 0) -> Batches:
        """The training images, in another order in each epoch."""
        return loader(self.train, seed)

    def rows(self, count: int = 512) -> TensorDataset:
        """The first training images, for calibration."""
        return TensorDataset(*(tensor[:count] for tensor in self.train.tensors))

    def kept(
        self, name: str, make: Callable[[], nn.Module], train: Callable[[], nn.Module]
    ) -> nn.Module:
        """A trained module of the work folder, or trained and put there.

        Args:
            name: of its folder.
            make: as `load_module` takes it.
            train: makes and trains it.
        """
        folder = self.work / "modules" / name
        if not folder.is_dir():
            save_module(train(), folder)
        return load_module(folder, make)

    def right(self, model: nn.Module | QuantizedModel) -> Right:
        """Which of the test images a model knows."""
        return right(model, self.test)


def make_figures(
    benchmark: str,
    text: str | None,
    names: Sequence[str],
    make: Callable[[str, Setting, argparse.Namespace], Iterable[Figure]],
    folder: str,
    **options: str,
) -> None:
    """Make the figures that are not there yet, one part after the other, and write them all.

    Args:
        benchmark: its name.
        text: of ``--help``.
        names: of the parts.
        make: the figures of a part, from its name, the setting and the command's arguments.
        folder: of the kept figures, in ``--work``.
        options: further arguments, with their help.
    """
    quiet_libraries()
    torch.set_num_threads(1)
    arguments = parse_arguments(
        text,
        data="folder with the four IDX files",
        work="folder of what is made",
        only="make one part only",
        kept="yes: write the parts that are there, and make none",
        **options,
    )
    if arguments.only not in (None, *names):
        raise SystemExit(f"--only takes one of: {', '.join(names)}")
    setting = Setting(Path(arguments.work or "runs/course"), Path(arguments.data or DATA))
    figures, console = list[Figure](), Console(stderr=True)
    for name in [arguments.only] if arguments.only else names:
        path = setting.work / folder / f"{name.replace(' ', '-')}.json"
        if arguments.kept and not path.is_file():
            console.print(f"{name}: not made yet")
            continue
        try:
            figures += kept_figures(path, partial(make, name, setting, arguments))
        except MissingExtraError as error:
            console.print(f"{name}: left out: {error}", markup=False)
    report(figures, benchmark, None if arguments.only else arguments.json)


def loader(data: TensorDataset, seed: int = 0) -> Batches:
    """Shuffled batches."""
    draw = torch.Generator().manual_seed(seed)
    return DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True, generator=draw)


class Perceptron(nn.Module):
    """Linears with ReLU between them, over the pixels."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        pairs = itertools.pairwise((784, *widths, 10))
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, 784] -> [rows, 10]."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        found: Tensor = self.layers[-1](x)
        return found


def pixels(data: TensorDataset, rows: int | None = None) -> TensorDataset:
    """Images without padding, flat: [rows, 784]."""
    images, labels = data.tensors
    return TensorDataset(images[:rows, 0, 2:30, 2:30].flatten(1), labels[:rows])


class Signals(nn.Module):
    """A signal of 28 channels and 28 steps, an image read row by row: Conv1d, then a GRU or not."""

    def __init__(self, gru: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(28, 48, 5, padding=2)
        self.conv2 = nn.Conv1d(48, 64, 3, stride=2, padding=1)
        self.gru = nn.GRU(64, 48, batch_first=True) if gru else None
        self.head = nn.Linear(48 if gru else 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, 28, 28] -> [rows, 10]."""
        states = F.relu(self.conv2(F.relu(self.conv1(x))))
        if self.gru is None:
            found: Tensor = self.head(states.mean(2))
            return found
        last: Tensor = self.head(self.gru(states.transpose(1, 2))[0][:, -1])
        return last


def signals(data: TensorDataset) -> TensorDataset:
    """Images as signals, one step for each row of pixels: [rows, 28, 28]."""
    images, labels = data.tensors
    return TensorDataset(images[:, 0, 2:30, 2:30].transpose(1, 2), labels)


def fit(
    model: nn.Module,
    batches: Batches,
    epochs: int,
    learning_rate: float = 2e-3,
    holds_zeros: bool = False,
) -> nn.Module:
    """Train a module in place by AdamW with warmup and a cosine; return it in eval mode.

    Args:
        model: any.
        batches: images and classes.
        epochs: over them.
        learning_rate: the largest.
        holds_zeros: weights that are zero stay so.
    """
    optimizer = scheduled(model, epochs * len(batches), learning_rate)
    with quick(model), keep_zeros(model, optimizer) if holds_zeros else nullcontext():
        for _ in range(epochs):
            train_one_epoch(model, batches, optimizer)
    return model.eval()


def scheduled(model: nn.Module, steps: int, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW whose learning rate rises over a tenth of the steps, and falls by a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.01)
    warmup = max(1, steps // 10)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1, (step - warmup) / max(1, steps - warmup))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


@contextmanager
def quick(*models: nn.Module) -> Iterator[None]:
    """Channels last, and bf16 where the processor has its products; fp32 weights stay.

    Pools put out the usual order, because ``x.view(-1, N)`` needs it.
    """
    with ExitStack() as stack:
        for model in models:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for module in model.modules():
                if isinstance(module, nn.MaxPool2d):
                    hook = module.register_forward_hook(lambda *given: given[-1].contiguous())
                    stack.callback(hook.remove)
        if bf16_is_faster(models[0]):  # elsewhere bf16 takes five times as long as fp32
            weights_change = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
            stack.enter_context(weights_change)
        yield
    for model in models:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


@torch.inference_mode()
def right(model: nn.Module | QuantizedModel, data: TensorDataset, batch: int = 500) -> Right:
    """Whether a model gives the right class, for each row."""
    images, labels = data.tensors
    if isinstance(model, nn.Module):
        model.eval()
    found = []
    for start in range(0, len(labels), batch):
        rows = images[start : start + batch].contiguous()
        found.append(logits_in(model(rows)).argmax(1))
    return np.asarray(torch.cat(found) == labels)


def accuracy(name: str, hits: Right, target: str | None = None) -> Figure:
    """An accuracy in percent with its 95 % interval."""
    low, high = confidence_interval("accuracy", hits.astype(np.int64), np.ones(len(hits), np.int64))
    value = round(100 * float(hits.mean()), 2)
    return Figure(name, value, "%", round(100 * low, 2), round(100 * high, 2), target)


def lost(name: str, dense: Right, small: Right, most: float | None = None) -> Figure:
    """Points that a model has lost against another on the same images, with the 95 % interval."""
    found = compare_right(dense, small)
    low, high = (round(100 * float(end or 0), 2) for end in (found.low, found.high))
    target = None if most is None else f"<= {most:g}"
    return Figure(name, round(100 * found.value, 2), "points", low, high, target)
