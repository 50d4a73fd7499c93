"""The kernel compiled for this machine, once for each way of using registers."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch

from hfcompress.layers.sparse_kernel import Shape, kernel_ir
from hfcompress.utils import require

_THREADS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


@functools.cache
def shape_for_host() -> Shape:
    """How to use this machine's registers: two of tokens, each summed in four chains.

    Blocks of 32 tokens (AVX-512) measured best from one row of 32 tokens to 4,096 tokens.

    Raises:
        MissingExtraError: llvmlite is not installed.
    """
    binding: Any = require("llvmlite.binding", "sparse")
    features = binding.get_host_cpu_features()
    lanes = 16 if features.get("avx512f") else 8 if features.get("avx2") else 4
    return Shape(lanes=lanes, vectors=2, chains=4)


@functools.cache
def compiled(shape: Shape) -> Any:
    """``run(arguments, threads)`` as a C function; it releases the interpreter while it runs.

    Raises:
        MissingExtraError: llvmlite is not installed.
    """
    binding: Any = require("llvmlite.binding", "sparse")
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    runtime = _openmp()
    for name in _THREADS if runtime else ():
        address = ctypes.cast(getattr(runtime, name), ctypes.c_void_p).value
        binding.add_symbol(name, address)
    module = binding.parse_assembly(kernel_ir(shape, threaded=runtime is not None))
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=3,
        jit=True,
    )
    options = binding.create_pipeline_tuning_options(speed_level=3)
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    prototype = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_int64), ctypes.c_int32)
    run = prototype(engine.get_function_address("run"))
    run.engine = engine  # type: ignore[attr-defined]  # the code lives as long as it
    return run


def _openmp() -> Any:
    """torch's own OpenMP, whose threads are already running; None where there is no such one."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*")):
        library = ctypes.CDLL(str(path))
        if all(hasattr(library, name) for name in _THREADS):
            return library
    return None
