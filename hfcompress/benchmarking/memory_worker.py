"""Run by `measure_memory` in a process of its own; reads a task as JSON, writes peaks as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from hfcompress.benchmarking.inputs import InputSpec, make_inputs

Run = Callable[[dict[str, NDArray[np.generic]]], object]


class Spec(TypedDict):
    """An `InputSpec` as JSON."""

    names: list[str]
    vocabulary: int
    padding: int
    longest: int
    pixels: list[int]


class Task(TypedDict):
    """What `measure_memory` asks for."""

    engine: str
    source: str
    dtype: str
    threads: int
    spec: Spec
    shapes: list[tuple[int, int]]


def main() -> None:
    """Load the engine, run each shape once and write the memory after each."""
    task: Task = json.load(sys.stdin)
    given = task["spec"]
    spec = InputSpec(
        tuple(given["names"]),
        given["vocabulary"],
        given["padding"],
        given["longest"],
        tuple(given["pixels"]),
    )
    opener = _opener(task)
    before = _memory("VmRSS")
    run = opener()
    peaks = []
    for batch, length in task["shapes"]:
        run(make_inputs(spec, batch, length))
        peaks.append(_memory("VmHWM"))
    sys.stdout.write(json.dumps({"before": before, "peaks": peaks}) + "\n")


def _opener(task: Task) -> Callable[[], Run]:
    """Import the engine's library, and return a function that loads the model."""
    folder, threads = Path(task["source"]), task["threads"]
    if task["dtype"] or task["engine"].startswith("torch"):
        return _torch(task)
    if task["engine"].startswith("onnxruntime"):
        import onnxruntime

        def open_onnx() -> Run:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            file = str(folder / "model.onnx")
            session = onnxruntime.InferenceSession(
                file,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["SkipLayerNormFusion"],  # as the engine does
            )
            return lambda arrays: session.run(None, arrays)

        return open_onnx
    import openvino

    def open_openvino() -> Run:
        manifest = json.loads((folder / "hfcompress.json").read_text(encoding="utf-8"))
        options: dict[str, str | int] = {"INFERENCE_NUM_THREADS": threads}
        if manifest["quantization"]["floats"] != "auto":
            options["INFERENCE_PRECISION_HINT"] = "f32"
        return openvino.Core().compile_model(str(folder / "model.xml"), "CPU", options)  # type: ignore[no-any-return]

    return open_openvino


def _torch(task: Task) -> Callable[[], Run]:
    import torch

    from hfcompress.benchmarking.subjects import Bf16Engine
    from hfcompress.models.loading import ModelConfig, load_model
    from hfcompress.quantization.backends.torch import TorchEngine
    from hfcompress.quantization.load import load
    from hfcompress.tasks.registry import task_of_checkpoint
    from hfcompress.utils import quiet_libraries

    quiet_libraries()
    torch.set_num_threads(task["threads"])

    def open_torch() -> Run:
        source = task["source"]
        if not task["dtype"]:
            return load(source).engine.logits
        given, asked = ModelConfig(path=source), task_of_checkpoint(source)
        model = load_model(given, asked, processor=False).model
        if task["dtype"] == "bfloat16":
            return Bf16Engine(model).logits
        return TorchEngine(model).logits

    return open_torch


def _memory(field: str) -> int:
    """Return the bytes of this process's memory: ``VmRSS`` now, or the peak ``VmHWM``."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
