"""What a course on compression promises, measured on its own networks in plain torch.

    python -m benchmarks.course --json benchmarks/results/course.json

The course's two convolutional networks (136,874 and 750,346 parameters, the larger with
``x.view(-1, 2048)``) learn Fashion-MNIST, padded to 3x32x32. Modules and rows are kept in --work,
so that a run that was cut goes on; --only NAME makes one row (--only list says which), so that a
phone engine can run in an environment of its own:

    OTHER/bin/python -m benchmarks.course --only "int8 in executorch"

Accuracies are of the 10,000 test images with 95 % intervals; losses are paired, on the same images.
A row whose engine is not installed is left out, and says so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._course import (
    Setting,
    accuracy,
    fit,
    lost,
    make_figures,
    quick,
    scheduled,
)
from benchmarks._figures import Figure
from hfcompress import (
    CompressionPipeline,
    PipelineResult,
    PruningConfig,
    QuantizationConfig,
    ShrinkConfig,
    SparseLinear,
    calculate_model_size,
    calculate_sparsity,
    count_macs,
    count_parameters,
    distill,
    keep_zeros,
    measure_latency,
    prune,
    quantize,
    shrink,
    sparsify,
)
from hfcompress.errors import MissingExtraError
from hfcompress.measure.latency import LatencyReport
from hfcompress.sweep.module_steps import AnyModel, ModuleStep
from tests.plain_networks import CourseStudent, CourseTeacher

EPOCHS, TEACHER_EPOCHS, RECOVERY, LONGER = 6, 4, 5, 2
TAUGHT, FEWER = 2, 1  # of distillation: the pipeline's student, the teacher with fewer channels
FASTER, MACS = 3.0, 0.2
INT8 = QuantizationConfig(backend="onnxruntime", mode="static")
SMALL, SMALLER = 40, 55_000
"""Times smaller than the teacher, and the parameters that this takes."""
ROUNDS = 30
ALL = ("Conv2d", "Linear")  # what is pruned; by default the last layer stays dense


def main() -> None:
    """Make every row that is not there yet, and write them all."""
    make_figures(
        "course", __doc__, list(ROWS), lambda name, setting, _: ROWS[name](setting), "rows"
    )


# --- the networks ------------------------------------------------------------------------------


def student(setting: Setting) -> nn.Module:
    """The small network, trained on the labels."""
    return setting.kept("student", CourseStudent, partial(_trained, setting, CourseStudent, EPOCHS))


def teacher(setting: Setting) -> nn.Module:
    """The large network, trained on the labels."""
    train = partial(_trained, setting, CourseTeacher, TEACHER_EPOCHS)
    return setting.kept("teacher", CourseTeacher, train)


def _trained(setting: Setting, make: Callable[[], nn.Module], epochs: int) -> nn.Module:
    torch.manual_seed(0)
    return fit(make(), setting.loader(), epochs)


def networks(setting: Setting) -> Iterator[Figure]:
    """Both as they are."""
    for name, make in (("student", student), ("teacher", teacher)):
        model = make(setting)
        label = f"{name}, {count_parameters(model):,} parameters, accuracy"
        yield accuracy(label, setting.right(model))


# --- zeros -------------------------------------------------------------------------------------


def zeros(setting: Setting) -> Iterator[Figure]:
    """One shot at 70 %, and 90 % taught by the dense network; beside it that trained longer."""
    dense = student(setting)
    known = setting.right(dense)
    pruned = copy.deepcopy(dense)
    prune(pruned, PruningConfig(method="alps", sparsity=0.7, targets=ALL), setting.rows())
    yield lost("70 % zeros in one shot, lost", known, setting.right(pruned), 3)

    sparse = setting.kept("student-90", CourseStudent, partial(_sparse, setting, dense))
    hits = setting.right(sparse)
    share = round(100 * calculate_sparsity(sparse).targets, 2)
    yield Figure("90 % zeros, trained again, share of zeros", share, "%", target=">= 89.9")
    yield accuracy("90 % zeros, trained again, accuracy", hits)
    yield lost("90 % zeros, trained again, lost", known, hits, 0.5)
    longer = setting.kept("student-longer", CourseStudent, partial(_longer, setting, dense))
    again = setting.right(longer)
    yield lost(f"dense, {LONGER} epochs longer, lost", known, again)


def _sparse(setting: Setting, dense: nn.Module) -> nn.Module:
    pruned = copy.deepcopy(dense)
    prune(pruned, PruningConfig(method="alps", sparsity=0.9, targets=ALL), setting.rows())
    optimizer = scheduled(pruned, RECOVERY * len(setting.loader()), 2e-3)
    with keep_zeros(pruned, optimizer):
        return taught(setting, dense, pruned, RECOVERY, optimizer)


def _longer(setting: Setting, dense: nn.Module) -> nn.Module:
    return fit(copy.deepcopy(dense), setting.loader(1), LONGER)


# --- structure ---------------------------------------------------------------------------------


def structure(setting: Setting) -> Iterator[Figure]:
    """The teacher with fewer channels and neurons: what it loses, and how much faster it is."""
    dense = teacher(setting)
    small = setting.kept("teacher-small", CourseTeacher, partial(_smaller, setting, dense))
    one = {"x": setting.rows(1).tensors[0]}
    share = count_macs(small, one).total / count_macs(dense, one).total
    yield Figure("fewer channels, multiply-accumulates left", round(share, 3), "share")
    yield lost("fewer channels, trained again, lost", setting.right(dense), setting.right(small), 1)
    plain = QuantizationConfig(backend="onnxruntime", mode="none")
    rows = setting.rows(32).tensors[0].contiguous()
    pairs: dict[str, tuple[AnyModel, ...]] = {
        "torch": (dense, small),
        "ONNX Runtime": tuple(quantize(net, plain, rows) for net in (dense, small)),
    }
    for engine, (before, after) in pairs.items():
        times = timed({"before": before, "after": after}, rows)
        yield ratio(f"fewer channels, 32 images, {engine}", times, "before", "after", FASTER)


def _smaller(setting: Setting, dense: nn.Module) -> nn.Module:
    small = copy.deepcopy(dense)
    shrink(small, ShrinkConfig(macs=MACS, multiple_of=8), setting.rows())
    return taught(setting, dense, small, FEWER)


def taught(
    setting: Setting,
    by: nn.Module,
    model: nn.Module,
    epochs: int,
    optimizer: torch.optim.Optimizer | None = None,
) -> nn.Module:
    """A module after learning from another, and from the labels."""
    with quick(by, model):
        distill(
            by, model, setting.loader(1), epochs=epochs, temperature=4, alpha=0.7,
            learning_rate=2e-3, optimizer=optimizer,
        )  # fmt: skip
    return model


def timed(models: Mapping[str, AnyModel], rows: Tensor) -> LatencyReport:
    """Times of models in turns on the same rows."""
    calls: dict[str, Callable[[], object]] = {
        name: partial(model.eval() if isinstance(model, nn.Module) else model, rows)
        for name, model in models.items()
    }
    return measure_latency(calls, repeats=ROUNDS, seconds=5)


def ratio(
    name: str, times: LatencyReport, slow: str, fast: str, least: float | None = None
) -> Figure:
    """How many times faster, with its quartiles."""
    found = times.ratio(slow, fast)
    target = None if least is None else f">= {least:g}"
    note = f"{times.times[slow].median:.2f} ms and {times.times[fast].median:.2f} ms"
    return Figure(f"{name}, times faster", found.median, "x", found.low, found.high, target, note)


# --- int8 --------------------------------------------------------------------------------------


def int8(backend: str, setting: Setting) -> Iterator[Figure]:
    """Both networks in static int8: share of the fp32 tensors' bytes, and points lost."""
    config = QuantizationConfig.from_dict({"backend": backend, "mode": "static"})
    for name, make in (("student", student), ("teacher", teacher)):
        model = make(setting)
        small = quantize(model, config, setting.rows(256))
        share = round(small.bytes / calculate_model_size(model), 4)
        label = f"int8 in {backend}, {name}"
        yield Figure(f"{label}, share of the bytes", share, "share", target="<= 0.27")
        yield lost(f"{label}, lost", setting.right(model), setting.right(small), 0.3)


# --- all together ------------------------------------------------------------------------------


def pipeline(setting: Setting) -> Iterator[Figure]:
    """Teacher, distilled student, fewer channels, int8: each beside the teacher."""
    dense = teacher(setting)
    result = _pipeline(setting)  # its first function makes the network that its rows begin with
    for name, row in zip(STEPS, result.rows, strict=True):
        value, low, high = (round(100 * row[key], 2) for key in ("value", "low", "high"))
        yield Figure(f"teacher to {name}, accuracy", value, "%", low, high)
    last = result.rows[-1]
    yield lost("teacher to int8, lost", setting.right(dense), setting.right(result.model), 1)
    smaller = round(calculate_model_size(dense) / last["bytes"], 1)
    yield Figure("teacher to int8, times smaller", smaller, "x", target=f">= {SMALL}")


STEPS = ("distilled student", "fewer channels", "trained again", "int8")


def _pipeline(setting: Setting) -> PipelineResult:
    dense = teacher(setting)

    def distilled(model: nn.Module) -> nn.Module:
        return taught(setting, model, copy.deepcopy(student(setting)), TAUGHT)

    def recovered(model: nn.Module) -> nn.Module:
        return taught(setting, dense, model, TAUGHT)

    steps: list[ModuleStep] = [distilled, ShrinkConfig(parameters=SMALLER), recovered, INT8]
    return CompressionPipeline(steps).run_module(
        dense, setting.rows(), setting.test, setting.work / "pipeline"
    )


# --- sparse kernels ----------------------------------------------------------------------------


class Unfolded(nn.Module):
    """A convolution as a sparse product over unfolded patches."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.product = nn.Linear(conv.weight[0].numel(), conv.out_channels)
        self.product.weight.data = conv.weight.data.flatten(1)
        if conv.bias is not None:
            self.product.bias.data = conv.bias.data
        self.kernel = conv.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """As the convolution, stride 1 and the same size: [rows, channels, height, width]."""
        patches = F.unfold(x, self.kernel, padding=self.kernel[0] // 2).transpose(1, 2)
        found: Tensor = self.product(patches).transpose(1, 2)
        return found.reshape(len(x), -1, *x.shape[2:]).contiguous()


def sparse_kernels(setting: Setting) -> Iterator[Figure]:
    """The teacher with 90 % zeros: kernels that skip them, and int8 beside."""
    pruned = copy.deepcopy(teacher(setting))
    prune(pruned, PruningConfig(sparsity=0.9))
    for count in (1, 32):
        rows = setting.rows(count).tensors[0].contiguous()
        linears = copy.deepcopy(pruned)
        sparsify(linears, count, 1)
        both = copy.deepcopy(pruned)
        for name in ("conv2", "conv3"):
            both.set_submodule(name, Unfolded(both.get_submodule(name)))  # type: ignore[arg-type]
        sparsify(both, count, 256)
        small = quantize(pruned, INT8, setting.rows(256))
        models: dict[str, AnyModel] = {
            "dense": pruned,
            "Linears": linears,
            "all layers": both,
            "int8": small,
        }
        times = timed(models, rows)
        where = f"90 % zeros, {count} image{'s' * (count > 1)}"
        skipped = [name for name, layer in both.named_modules() if isinstance(layer, SparseLinear)]
        yield ratio(f"{where}, sparse kernels in Linears", times, "dense", "Linears")
        yield ratio(f"{where}, and in convolutions", times, "dense", "all layers", 2)
        yield Figure(f"{where}, products that gain, unfolding aside", len(skipped), "of 4 layers")
        yield ratio(f"{where}, dense int8 in ONNX Runtime instead", times, "dense", "int8")
        yield ratio(
            f"{where}, fc1 alone",
            layer_times(pruned.get_submodule("fc1"), count),
            "dense",
            "sparse",
        )


def layer_times(layer: nn.Module, count: int) -> LatencyReport:
    """Times of one Linear, dense and with the kernel that skips zeros."""
    assert isinstance(layer, nn.Linear)
    rows = torch.randn(count, layer.in_features, generator=torch.Generator().manual_seed(0))
    try:
        sparse = SparseLinear(layer)
    except MissingExtraError:
        sparse = SparseLinear(layer, "csr")
    return timed({"dense": layer, "sparse": sparse}, rows)


ROWS: dict[str, Callable[[Setting], Iterator[Figure]]] = {
    "networks": networks,
    "zeros": zeros,
    "structure": structure,
    "int8 in onnxruntime": partial(int8, "onnxruntime"),
    "int8 in openvino": partial(int8, "openvino"),
    "int8 in executorch": partial(int8, "executorch"),
    "all together": pipeline,
    "sparse kernels": sparse_kernels,
}
"""Row -> what makes its figures, in the order in which they are made."""


if __name__ == "__main__":
    main()
