"""What a figure depends on besides the code: versions, processor, threads."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

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
