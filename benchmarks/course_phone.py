"""What reaches a phone or a microcontroller: int8 files in the engines of small devices.

    python -m benchmarks.course_phone --sentences FOLDER --json benchmarks/results/course_phone.json

Networks of `benchmarks.course` in full int8 in ExecuTorch, and half of MiniLM, fine-tuned on SST-2,
in int8 in LiteRT, beside the same in ONNX Runtime and OpenVINO. FOLDER holds train.tsv and dev.tsv;
without it the hub's GLUE is read. The two engines need environments of their own: make a row in
each with --only (see `benchmarks.course`), then write what is there with --kept yes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from benchmarks._course import Setting, Signals, fit, loader, lost, make_figures, right, signals
from benchmarks._course_sentences import Sentences, phone
from benchmarks._figures import Figure
from benchmarks.course import student
from hfcompress import QuantizationConfig, QuantizedModel, quantize
from hfcompress.quantization.engine import FileEngine
from hfcompress.utils import require

EPOCHS = 2
"""Of the networks of signals."""


def main() -> None:
    """Make every row that is not there yet, and write them all."""
    sentences = {"sentences": "folder with train.tsv and dev.tsv of SST-2; by default the hub's"}
    make_figures("course_phone", __doc__, list(ROWS), _made, "rows", **sentences)


def _made(name: str, setting: Setting, arguments: argparse.Namespace) -> Iterator[Figure]:
    return ROWS[name](setting, arguments.sentences)


def signal_network(setting: Setting, gru: bool) -> nn.Module:
    """A network of signals, trained on the labels."""

    def train() -> nn.Module:
        torch.manual_seed(0)
        return fit(Signals(gru), loader(signals(setting.train)), EPOCHS)

    return setting.kept(f"signals{'-gru' * gru}", partial(Signals, gru), train)


def microcontroller(backend: str, setting: Setting, _: str | None) -> Iterator[Figure]:
    """An image network and two of signals in full int8: bytes, memory, points lost."""
    config = QuantizationConfig.from_dict({"backend": backend, "mode": "static"})
    cases = {
        "image": (student(setting), setting.test, setting.rows(256)),
        "signal, Conv1d": (signal_network(setting, False), signals(setting.test), None),
        "signal, Conv1d and GRU": (signal_network(setting, True), signals(setting.test), None),
    }
    for name, (model, test, rows) in cases.items():
        small = quantize(model, config, rows or signals(setting.rows(256)))
        label = f"microcontroller, {name}, {backend}"
        yield Figure(f"{label}, file", round(small.bytes / 1000, 1), "KB", target="<= 1000")
        yield Figure(f"{label}, planned memory", round(planned_memory(small) / 1000, 1), "KB")
        share = round(100 * small.coverage.share_of_bytes, 1)
        yield Figure(f"{label}, fp32 bytes that became int8", share, "%")
        yield lost(f"{label}, lost", right(model, test), right(small, test), 0.3)


def planned_memory(small: QuantizedModel) -> int:
    """Bytes that an ExecuTorch file plans for activations, besides what its backend takes itself.

    Raises:
        MissingExtraError: executorch is not installed.
    """
    tools = require("executorch.exir._serialize._program", "executorch")
    assert isinstance(small.engine, FileEngine)
    (file,) = small.engine.files
    read = tools.deserialize_pte_binary(file.read_bytes())
    (plan,) = getattr(read, "program", read).execution_plan
    return sum(plan.non_const_buffer_sizes)


def classifier(setting: Setting, data: str | None) -> Iterator[Figure]:
    """Half of MiniLM in LiteRT."""
    return phone(Sentences(setting.work / "minilm", data))


ROWS: dict[str, Callable[[Setting, str | None], Iterator[Figure]]] = {
    "microcontroller": partial(microcontroller, "executorch"),
    "MiniLM on a phone engine": classifier,
}
"""Row -> what makes its figures, from the setting and the folder of sentences."""


if __name__ == "__main__":
    main()
