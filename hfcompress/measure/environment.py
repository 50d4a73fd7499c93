"""What a figure depends on besides the code: versions, processor, threads."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hfcompress.errors import ConfigError

_PACKAGES = (
    "hfcompress", "torch", "transformers", "datasets", "evaluate", "accelerate", "optimum", "numpy",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions, processor, its abilities and the threads in use, as plain data.

    No host, user or path: it may be published as it is.
    """
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def check_device(device: str | None) -> None:
    """Refuse a device that this machine lacks; None is wherever things are.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        ConfigError: torch does not find it.
    """
    kind = "cpu" if device is None else device.partition(":")[0]
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not found.get(kind, True):
        raise ConfigError(f"device {device} is not there (torch finds none); write device: cpu")


def cpu_abilities() -> dict[str, Any]:
    """What the processor can do, by torch's names (``amx_bf16``); empty where torch cannot say."""
    find: Any = getattr(torch.cpu, "get_capabilities", None)  # older releases have none
    return {} if find is None else dict(find())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# VNNI and AMX on x86, dot products and matrix products on ARM.
FAST_INT8 = ("avx512_vnni", "avx_vnni", "amx_int8", "dot", "i8mm")


def has_fast_int8() -> bool:
    """True where products of 8-bit integers have instructions of their own."""
    known = cpu_abilities()
    return any(known.get(name) for name in FAST_INT8)


def slow_int8() -> str | None:
    """One sentence for the user where `has_fast_int8` is false, else None."""
    if has_fast_int8():
        return None
    return (
        "this processor has no VNNI, AMX or dot-product instructions: int8 is hardly faster than "
        "fp32 here, and 8-bit sums may saturate (reduce_range: true avoids that in onnxruntime)"
    )


# Matrix products in bf16: AMX and AVX-512 on x86, and ARM's.
FAST_BF16 = ("amx_bf16", "avx512_bf16", "bf16")


def has_fast_bf16() -> bool:
    """True where bf16 matrix products have instructions of their own."""
    known = cpu_abilities()
    return any(known.get(name) for name in FAST_BF16)


def slow_bf16() -> str | None:
    """One sentence for the user where training in bf16 is known to be slower than in fp32."""
    if has_fast_bf16() or not cpu_abilities():
        return None
    return (
        "bf16: this processor has no bf16 instructions, and would take several times as long; "
        "it computes in fp32"
    )


def bf16_is_faster(model: nn.Module) -> bool:
    """True for an fp32 model on a processor with bf16 matrix products."""
    parameter = next(model.parameters())
    if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
        return False
    return has_fast_bf16()
