"""Deployment profiles: how large a model may be where it is to run, and which models are.

The limits are conventions, written down once: change or add one in `PROFILES`. A profile speaks
of the model's own files and of the memory that a model and its engine's buffers may take; a
tokenizer comes on top. An estimate of energy goes with them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from hfcompress.config import nearest
from hfcompress.errors import ConfigError
from hfcompress.measure.macs import is_linear
from hfcompress.measure.size import calculate_model_size, count_parameters
from hfcompress.utils import is_conv1d

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Profile:
    """One place where models run.

    Attributes:
        name: what the command line calls it.
        max_bytes: of the model's own files.
        engines: backends of `QuantizationConfig` whose files run there.
        why: where the limit comes from.
        max_memory: bytes that a model may take while it runs.
        runs_from_flash: weights are read where they lie, and do not count as memory.
    """

    name: str
    max_bytes: int
    engines: tuple[str, ...]
    why: str
    max_memory: int
    runs_from_flash: bool = False

    def fits(self, size: int) -> bool:
        """Whether a model of so many bytes may go there: below the limit, not at it."""
        return size < self.max_bytes


# From the smallest to the largest.
PROFILES = (
    Profile(
        "microcontroller",
        1 * MEGABYTE,
        ("litert",),
        "flash of a larger microcontroller",
        max_memory=256_000,
        runs_from_flash=True,
    ),
    Profile(
        "watch",
        5 * MEGABYTE,
        ("executorch", "litert"),
        "an app for a wrist is loaded over Bluetooth",
        max_memory=50 * MEGABYTE,
    ),
    Profile(
        "phone",
        10 * MEGABYTE,
        ("executorch", "litert", "onnxruntime"),
        "what an app may grow by unnoticed",
        max_memory=200 * MEGABYTE,
    ),
    Profile(
        "browser",
        25 * MEGABYTE,
        ("onnxruntime",),
        "a page's download on a slow line",
        max_memory=500 * MEGABYTE,
    ),
    Profile(
        "edge",
        100 * MEGABYTE,
        ("executorch", "litert", "onnxruntime", "openvino"),
        "a board with 1 GB of memory",
        max_memory=500 * MEGABYTE,
    ),
    Profile(
        "server-cpu",
        500 * MEGABYTE,
        ("onnxruntime", "openvino", "torch", "torchao"),
        "several workers side by side in a small container",
        max_memory=2000 * MEGABYTE,
    ),
)


def profiles() -> dict[str, Profile]:
    """Every profile by its name, the smallest first."""
    return {profile.name: profile for profile in PROFILES}


def find_profile(name: str) -> Profile:
    """One profile.

    Raises:
        ConfigError: an unknown name; the nearest is given.
    """
    known = profiles()
    if name not in known:
        raise ConfigError(f"there is no deployment profile {name!r}{nearest(name, known)}")
    return known[name]


def estimated_int8_bytes(model: nn.Module) -> int:
    """Bytes of the weights once Linears, Conv1Ds and tables are int8, before anything is exported.

    A scale for each output (each table: one), the rest in fp32; a tied weight counts once. The
    graph of an exported file comes on top, some 100 to 500 kB.
    """
    saved = 0
    seen: set[int] = set()
    for module in model.modules():
        if not (isinstance(module, nn.Embedding) or is_linear(module)):
            continue
        if id(module.weight) not in seen:
            seen.add(id(module.weight))
            channels = module.weight.shape[1 if is_conv1d(module) else 0]
            scales = 1 if isinstance(module, nn.Embedding) else channels
            saved += 3 * module.weight.numel() - 4 * scales
    return calculate_model_size(model) - saved


@dataclass(frozen=True)
class Fit:
    """Whether one model fits one profile.

    Attributes:
        profile: which.
        fp32: as it is; None where the model is quantized already.
        int8: quantized (by estimate), or as it is where it is quantized already.
        needs: what has to be done, in words; empty where it fits as it is.
    """

    profile: Profile
    fp32: bool | None
    int8: bool
    needs: str


def fits_of_model(model: nn.Module) -> list[Fit]:
    """Whether an fp32 model fits each profile as it is, and what it would need.

    Args:
        model: any module with parameters.
    """
    full, small = calculate_model_size(model), estimated_int8_bytes(model)
    parameters = count_parameters(model)
    return [_fit(profile, full, small, parameters) for profile in PROFILES]


def fits_of_bytes(size: int) -> list[Fit]:
    """Whether a quantized model of so many bytes fits each profile."""
    return [Fit(profile, None, profile.fits(size), _shrink(profile, size)) for profile in PROFILES]


def _fit(profile: Profile, full: int, small: int, parameters: int) -> Fit:
    if profile.fits(full):
        return Fit(profile, True, True, "")
    if profile.fits(small):
        return Fit(profile, False, True, f"int8: {small / MEGABYTE:.1f} MB")
    left = int(parameters * profile.max_bytes / small)
    needs = f"int8 and {_shrink(profile, small)}: {left / MEGABYTE:.1f} M parameters or fewer"
    return Fit(profile, False, False, needs)


def _shrink(profile: Profile, size: int) -> str:
    if profile.fits(size):
        return ""
    return f"{size / profile.max_bytes:.1f} times smaller"


# --- energy ------------------------------------------------------------------------------------

# Mark Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, figure
# 1.1.9: energy of an operation in a 45 nm process at 0.9 V. Later processes need less of
# everything, memory stays the dearest part; so ratios between models say more than the figures.
_PICO = 1e-12
# A multiplication and an addition.
FLOAT_MAC = (3.7 + 0.9) * _PICO
INTEGER_MAC = (0.2 + 0.03) * _PICO
# 640 pJ for 32 bits from DRAM.
DRAM_BYTE = 640 / 4 * _PICO


@dataclass(frozen=True)
class Energy:
    """Estimated joules of one forward pass.

    Attributes:
        compute: multiply-accumulates.
        memory: each weight read once from DRAM; activations are not counted.
    """

    compute: float
    memory: float

    @property
    def total(self) -> float:
        """Return the sum."""
        return self.compute + self.memory


def estimated_energy(float_macs: int, integer_macs: int, weight_bytes: int) -> Energy:
    """Return the estimated energy of one forward pass.

    Args:
        float_macs: multiply-accumulates in floating point.
        integer_macs: those whose weights are 8-bit integers.
        weight_bytes: size of the weights as stored.
    """
    return Energy(float_macs * FLOAT_MAC + integer_macs * INTEGER_MAC, weight_bytes * DRAM_BYTE)
