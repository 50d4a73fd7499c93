"""What became of each module of a quantized model, and why; nothing is passed over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hfcompress.measure.macs import (
    CONVOLUTIONS,
    count_macs,
    evaluation_mode,
    is_weighted,
    weighted_modules,
)
from hfcompress.models.architectures import matching_modules
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.images import ImageShape
from hfcompress.quantization.inputs import Classifier
from hfcompress.quantization.manifest import CoverageReport, ModuleReport
from hfcompress.quantization.onnx_export import example_inputs

# Multiply-accumulates are counted for one example of so many tokens.
_TOKENS = 32


@dataclass(frozen=True)
class ModuleCoverage:
    """One module that holds parameters of its own.

    Attributes:
        name: as ``model.named_modules()`` gives it.
        kind: its class.
        bytes: of its parameters in fp32, bias included.
        integer_bytes: of those, what is stored as integers now: the weight's.
        macs: multiply-accumulates for one example of 32 tokens, or one image.
        quantized: its weight is stored and multiplied as integers (a table: looked up).
        why: the reason where it is not.
    """

    name: str
    kind: str
    bytes: int
    integer_bytes: int
    macs: int
    quantized: bool
    why: str = ""


@dataclass(frozen=True)
class Coverage:
    """Every module with parameters, and what the whole comes to.

    Attributes:
        modules: in the model's order; tied weights once.
        total_macs: of the whole model, attention's own products included.
    """

    modules: tuple[ModuleCoverage, ...]
    total_macs: int

    @property
    def share_of_bytes(self) -> float:
        """Share of the fp32 model's bytes that are integers now."""
        total = sum(module.bytes for module in self.modules)
        return sum(module.integer_bytes for module in self.modules) / total if total else 0.0

    @property
    def share_of_macs(self) -> float:
        """Share of the multiply-accumulates whose weights are integers now.

        Attention multiplies activations with each other; that counts as not quantized.
        """
        done = sum(module.macs for module in self.modules if module.quantized)
        return done / self.total_macs if self.total_macs else 0.0

    @property
    def reasons(self) -> dict[str, int]:
        """Why modules stay in floating point -> how many do."""
        counts: dict[str, int] = {}
        for module in self.modules:
            if not module.quantized:
                counts[module.why] = counts.get(module.why, 0) + 1
        return counts

    @property
    def sentence(self) -> str:
        """The shares, and what stays in floating point, in one sentence."""
        left = "; ".join(f"{count} modules: {why}" for why, count in self.reasons.items())
        return (
            f"integers now: {self.share_of_bytes:.1%} of the bytes, {self.share_of_macs:.1%} of "
            f"the multiply-accumulates; in floating point: {left or 'nothing'}"
        )

    def to_dict(self) -> CoverageReport:
        """Return the shares, the reasons and every module as JSON data."""
        return {
            "share_of_bytes": self.share_of_bytes,
            "share_of_macs": self.share_of_macs,
            "quantized_modules": sum(module.quantized for module in self.modules),
            "left_alone": self.reasons,
            "modules": [cast(ModuleReport, asdict(module)) for module in self.modules],
        }


def cover(
    model: Classifier,
    quantized: Collection[str],
    why: Callable[[nn.Module], str],
    excluded: Mapping[str, str] | None = None,
    image: ImageShape | None = None,
    folds_norms: bool = False,
) -> Coverage:
    """Report on every module of the fp32 model.

    Args:
        model: as it was before.
        quantized: names of the modules that were.
        why: the backend's reason for leaving a module of this class alone.
        excluded: names that were left out on purpose, and why.
        image: shape of the image that multiply-accumulates are counted for; the usual by default.
        folds_norms: whether the engine folds batch norms into the convolutions before them.
    """
    example = example_inputs(model, 1, _TOKENS, image)
    macs = count_macs(model, example)
    folded = folded_norms(model, example) if folds_norms else set()
    rows: list[ModuleCoverage] = []
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = [p for p in module._parameters.values() if p is not None and id(p) not in seen]
        if not own:
            continue
        seen.update(id(parameter) for parameter in own)
        reason = (excluded or {}).get(name) or _reason(module, why)
        if name in folded:
            reason = "folded into the convolution before it"
        weight = module._parameters.get("weight")
        rows.append(
            ModuleCoverage(
                name=name,
                kind=type(module).__name__,
                bytes=sum(parameter.numel() * 4 for parameter in own),
                integer_bytes=weight.numel() * 4 if weight is not None and name in quantized else 0,
                macs=macs.modules.get(name, 0),
                quantized=name in quantized,
                why="" if name in quantized else reason,
            )
        )
    return Coverage(tuple(rows), macs.total)


def _reason(module: nn.Module, why: Callable[[nn.Module], str]) -> str:
    if is_weighted(module) or isinstance(module, nn.Embedding):
        return why(module)
    matrices = any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    if matrices and type(module).__module__.startswith("torch.nn."):
        return f"{type(module).__name__} is none of the modules that are quantized"
    return "norms and single parameters stay in floating point"


def excluded_modules(model: nn.Module, config: QuantizationConfig) -> set[str]:
    """Names that ``exclude`` names, of products, convolutions and tables.

    Raises:
        TargetError: a pattern that matches nothing.
    """
    if not config.exclude:
        return set()
    return set(matching_modules(weighted_modules(model) | _tables(model), config.exclude))


def _tables(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Embedding)}


DYNAMIC_LEAVES_CONVOLUTIONS = (
    "dynamic quantization does nothing for convolutions, which gain in int8 only where the ranges "
    "of activations are known beforehand; mode: static takes them, with calibration data"
)


def share_of_convolutions(model: nn.Module) -> float:
    """Share of a model's matrices, kernels and tables that convolutions hold; 0 without weights.

    A ViT's patch embedding is a convolution, and a small part of it.
    """
    held = {True: 0, False: 0}
    for module in (weighted_modules(model) | _tables(model)).values():
        held[isinstance(module, CONVOLUTIONS)] += module.get_parameter("weight").numel()
    return held[True] / sum(held.values()) if sum(held.values()) else 0.0


def is_convolutional(model: nn.Module) -> bool:
    """Whether convolutions hold most of the weights."""
    return share_of_convolutions(model) > 0.5


def folded_norms(model: nn.Module, inputs: Mapping[str, Tensor]) -> set[str]:
    """Names of the batch norms that read what one convolution puts out, and nothing else does.

    Evaluation makes such a norm a scale and a shift for each channel: the convolution's weight
    and bias take them up, and the norm is gone (Jacob et al. 2018, 1712.05877, section 3.2).

    Args:
        model: run once, in evaluation mode.
        inputs: keyword arguments of its forward.
    """
    names = {module: name for name, module in model.named_modules()}
    made: dict[int, Tensor] = {}
    found: set[str] = set()

    def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, CONVOLUTIONS):
            made[id(output)] = output  # kept, so that no other tensor gets its number
        elif isinstance(module, _BatchNorm) and given and id(given[0]) in made:
            found.add(names[module])

    handles = [
        module.register_forward_hook(note)
        for module in model.modules()
        if isinstance(module, (*CONVOLUTIONS, _BatchNorm))
    ]
    try:
        with evaluation_mode(model), torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def without_weights(model: nn.Module) -> set[str]:
    """Names of modules that have no weight left: shrinking has removed all their units."""
    weights = {name: getattr(module, "weight", None) for name, module in model.named_modules()}
    return {
        name
        for name, weight in weights.items()
        if isinstance(weight, Tensor) and not weight.numel()
    }
