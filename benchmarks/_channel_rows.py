"""Rows of vision_quality: channels removed from the ResNet, beside Torch-Pruning's own loop.

Both start from the same dense model, look at the same calibration rows and are trained by the same
recover step; the compressed networks are timed beside the dense one in torch and ONNX Runtime.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks._clock import CpuClock
from benchmarks._rows import after_step
from benchmarks._vision import Row, RowMaker, Setting, model_row
from hfcompress.calibration.batches import Calibration, task_loss
from hfcompress.measure.latency import LatencyReport, measure_latency
from hfcompress.measure.macs import count_macs
from hfcompress.quantization.backends.onnxruntime import OnnxEngine
from hfcompress.quantization.onnx_export import export_onnx
from hfcompress.recipes.step_configs import RecoverConfig
from hfcompress.shrinking.channels.repair import estimate_batch_norms
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.shrink import shrink
from hfcompress.steps.context import Context

RESNET = "fashion-mnist-resnet"
HALF, THIRD, FIFTH = 0.5, 0.33, 0.22
ROWS = 1024
BATCH = 32
STEPS = 40
POINTS = {
    "ResNet, channels at 50 % of MACs, no retraining": 1.5,
    "ResNet, channels at 33 % of MACs, recovered": 0.5,
    "ResNet, channels at 22 % of MACs, recovered": 0.5,
}
"""Row -> points that may be lost against the dense model."""
# The smallest network is trained twice as long; its epochs are short.
LONGER = 2
SPEEDUP = 2.2
RECOVER: dict[str, Any] = {
    "epochs": 4, "batch_size": 128, "learning_rate": 2e-3, "schedule": "cosine", "warmup": 0.05,
    "bf16": True, "channels_last": True, "image_augmentation": {"flip": 0.5, "shift": 2},
    "distillation": {"temperature": 4},
}  # fmt: skip
Remove = Callable[[nn.Module, Calibration, float], None]


def channel_rows() -> dict[str, RowMaker]:
    """Every row by name, in the order in which they are made."""
    return {
        "ResNet, channels at 50 % of MACs, no retraining": partial(_row, _ours, HALF, False),
        "the same by Torch-Pruning's group norm": partial(_row, _group_norm, HALF, False),
        "the same by Torch-Pruning's Taylor": partial(_row, _taylor, HALF, False),
        "ResNet, channels at 33 % of MACs, recovered": partial(_row, _ours, THIRD, True),
        "the same by Torch-Pruning's group norm, recovered": partial(
            _row, _group_norm, THIRD, True
        ),
        "ResNet, channels at 22 % of MACs, recovered": partial(_row, _ours, FIFTH, True),
    }


def _row(remove: Remove, share: float, recovers: bool, setting: Setting) -> Row:
    """Remove channels, recover where wanted, and measure."""
    context = setting.context(RESNET, 0)
    model = context.dense_model()
    calibration = context.calibration(ROWS, 0)
    clock = CpuClock()
    remove(model, calibration, share)
    if recovers:
        model = _recovered(model, context, LONGER if share < THIRD else 1)
    minutes = clock.minutes
    inputs = inputs_of(calibration)
    faster = _speedups(context.dense_model(), model, inputs)
    return model_row(model, context, minutes, inputs, faster)


def _recovered(model: PreTrainedModel, context: Context, longer: int) -> PreTrainedModel:
    config = RecoverConfig(**{**RECOVER, "epochs": longer * RECOVER["epochs"]})
    return after_step(model, config, context, is_shrunk=True)


def _ours(model: nn.Module, calibration: Calibration, share: float) -> None:
    # Convolutions compute 16 channels at a time: what is cut between multiples saves nothing.
    shrink(model, ShrinkConfig(macs=share, multiple_of=16), calibration)


def _group_norm(model: nn.Module, calibration: Calibration, share: float) -> None:
    import torch_pruning as tp

    _torch_pruning(model, calibration, share, tp.importance.GroupMagnitudeImportance())


def _taylor(model: nn.Module, calibration: Calibration, share: float) -> None:
    import torch_pruning as tp

    _torch_pruning(model, calibration, share, tp.importance.GroupTaylorImportance(), graded=True)


def _torch_pruning(
    model: nn.Module, calibration: Calibration, share: float, score: Any, graded: bool = False
) -> None:
    """Its own loop: all layers ranked together, step by step until the MACs are reached; batch
    norms are then measured anew, as its users do."""
    import torch_pruning as tp

    head = [module for module in model.modules() if isinstance(module, nn.Linear)]
    inputs = {key: value[:1] for key, value in inputs_of(calibration).items()}
    wanted = share * count_macs(model, inputs).total
    pruner = tp.pruner.BasePruner(
        model,
        inputs,
        score,
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=0.9,
        iterative_steps=STEPS,
        ignored_layers=head,
        output_transform=lambda result: result.logits,
    )
    for _ in range(STEPS):
        if count_macs(model, inputs).total <= wanted:
            break
        if graded:
            model.zero_grad()
            for batch in calibration.batches:
                task_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        pruner.step()
    model.zero_grad()
    estimate_batch_norms(model, calibration)


def inputs_of(calibration: Calibration) -> dict[str, torch.Tensor]:
    """A batch of `BATCH` images."""
    return {key: value[:BATCH] for key, value in calibration.batches[0].items() if key != "labels"}


def _speedups(
    dense: PreTrainedModel, model: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> dict[str, float]:
    """Times faster than the dense network for a batch of `BATCH`, interleaved, by engine."""
    with tempfile.TemporaryDirectory() as folder:
        timed = {
            "torch": _in_torch(dense, model, inputs, torch.contiguous_format),
            # Both in the format in which torch's convolutions are fastest.
            "torch, channels last": _in_torch(dense, model, inputs, torch.channels_last),
            "onnxruntime": _in_onnxruntime(dense, model, inputs, Path(folder)),
        }
        found = {
            f"speedup_{engine}": times.ratio("dense", "model").median
            for engine, times in timed.items()
        }
    _laid_out((dense, model), torch.contiguous_format)
    return found


def _in_torch(
    dense: PreTrainedModel,
    model: PreTrainedModel,
    inputs: dict[str, torch.Tensor],
    layout: torch.memory_format,
) -> LatencyReport:
    images = inputs["pixel_values"].contiguous(memory_format=layout)
    _laid_out((dense, model), layout)
    calls: dict[str, Callable[[], Any]] = {
        "dense": lambda: dense(images),
        "model": lambda: model(images),
    }
    return measure_latency(calls, warmup=3, repeats=50)


def _laid_out(networks: Sequence[Any], layout: torch.memory_format) -> None:
    for network in networks:
        network.to(memory_format=layout)


def _in_onnxruntime(
    dense: PreTrainedModel, model: PreTrainedModel, inputs: dict[str, torch.Tensor], folder: Path
) -> LatencyReport:
    _, *size = inputs["pixel_values"].shape
    image = (size[0], size[1], size[2])
    arrays = {key: value.numpy() for key, value in inputs.items()}
    calls: dict[str, Callable[[], Any]] = {}
    for name, network in (("dense", dense), ("model", model)):
        path = export_onnx(network, folder / f"{name}.onnx", image)
        calls[name] = partial(OnnxEngine(path, torch.get_num_threads()).logits, arrays)
    return measure_latency(calls, warmup=3, repeats=50)
