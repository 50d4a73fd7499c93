"""Silence for the libraries' own logs and bars, where something of ours shows progress."""

from __future__ import annotations

import logging
import warnings
from typing import Any


def quiet_libraries() -> None:
    """Turn off the logs below errors, the bars and the warnings of the Hugging Face libraries.

    Called by the command line and the benchmarks; the package itself changes no global setting.
    """
    # torchao 0.18, 2026-11: where it is installed, transformers imports it, and it tells of the
    # kernels that it does not find and of what torch deprecates in it.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets
    import transformers

    logs: Any = transformers.utils.logging
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|datasets|accelerate|optimum)\b")
