"""The product of a batch of tokens with an unstructured sparse weight, as LLVM IR.

What makes it fast: a block of tokens is transposed once into a panel [inputs, tokens of the
block], so that each non-zero weight is one scalar that multiplies a few whole registers of tokens.
The sums of one output row stay in registers over all its non-zeros, in several independent chains
that hide the latency of the multiply-add. As many rows as a register has lanes are then
transposed back together.

Built as IR because registers have to be named: a loop over tokens in memory runs at a third of
this speed.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from hfcompress.layers.llvm import Builder, Value
from hfcompress.utils import require

POINTERS = ("x", "offsets", "values", "starts", "bias", "y", "panel")
SIZES = ("tokens", "inputs", "outputs", "panel_bytes", "splits")
ARGUMENTS = POINTERS + SIZES
"""What the kernel reads, 64 bits each, in this order.

``x`` [tokens, inputs] and ``y`` [tokens, outputs] are dense fp32; ``values`` and ``offsets`` hold
each row's non-zeros and their column numbers from ``starts[row]`` to ``starts[row + 1]``; ``panel``
is room for every thread's panel of ``panel_bytes``; rows are split in ``splits`` parts among
threads.
"""

Kernel = Callable[[ctypes.Array[ctypes.c_int64], int], None]
"""``kernel(arguments, threads)``: compiled code that reads what `ARGUMENTS` names."""


@dataclass(frozen=True)
class Shape:
    """How the kernel uses registers.

    Attributes:
        lanes: fp32 numbers in one register.
        vectors: registers of tokens in a block.
        chains: independent sums of each.
        unroll: non-zeros in one turn of the loop; each row is padded to a multiple of it.
    """

    lanes: int
    vectors: int
    chains: int
    unroll: int = 4

    @property
    def tokens(self) -> int:
        """Tokens in a block."""
        return self.lanes * self.vectors


def kernel_ir(shape: Shape, threaded: bool) -> str:
    """A module that defines ``run(ptr arguments, i32 threads)``.

    Args:
        shape: how it uses registers.
        threaded: call GNU OpenMP's ``GOMP_parallel``, which must be there when it is compiled.

    Raises:
        MissingExtraError: llvmlite is not installed.
    """
    return str(_Kernel(shape, threaded).module)


class _Kernel(Builder):
    """Builds the module: ``task`` is one thread's work, ``run`` starts the threads."""

    def __init__(self, shape: Shape, threaded: bool) -> None:
        super().__init__(shape.lanes)
        self.shape = shape
        self.fma = self.function(f"llvm.fma.v{shape.lanes}f32", [self.vector] * 3, self.vector)
        self.task = self.function("task", [self.pointer, self.int, self.int])
        self.define_task()
        self.define_run(threaded)

    def define_task(self) -> None:
        """Blocks of tokens times parts of the rows; neighbours share the packed block."""
        build = self.build = self.ir.IRBuilder(self.task.append_basic_block())
        shape, (arguments, thread, threads) = self.shape, self.task.args
        self.tile = build.alloca(self.vector, shape.lanes * shape.vectors)
        self.tile.align = 64
        given: dict[str, Value] = {}
        for place, name in enumerate(ARGUMENTS):
            kind = self.pointer if name in POINTERS else self.int
            given[name] = build.load(self.at(arguments, self.number(place), self.int), typ=kind)
        self.given: Value = SimpleNamespace(**given)
        own = build.mul(thread, self.given.panel_bytes)
        self.panel = self.at(self.given.panel, own, self.ir.IntType(8))
        blocks = self.ceiling(self.given.tokens, shape.tokens)
        groups = self.ceiling(self.given.outputs, shape.lanes)
        parts = build.mul(blocks, self.given.splits)
        first = self.share(parts, thread, threads)
        end = self.share(parts, build.add(thread, self.number(1)), threads)

        def part(number: Value) -> list[Value]:
            token = build.mul(build.sdiv(number, self.given.splits), self.number(shape.tokens))
            split = build.srem(number, self.given.splits)
            fresh = build.icmp_signed("==", split, self.number(0))
            with build.if_then(build.or_(fresh, build.icmp_signed("==", number, first))):
                self.pack(token)
            low = self.share(groups, split, self.given.splits)
            high = self.share(groups, build.add(split, self.number(1)), self.given.splits)
            self.loop(low, high, 1, lambda group: self.group(group, token))
            return []

        self.loop(first, end, 1, part)
        build.ret_void()

    def pack(self, token: Value) -> None:
        """Transpose a block into the panel; the last token fills up a block that is not full."""
        build, shape = self.build, self.shape
        last_token = build.sub(self.given.tokens, self.number(1))
        last_column = build.sub(self.given.inputs, self.number(shape.lanes))
        for part in range(shape.vectors):
            rows = []
            for lane in range(shape.lanes):
                index = build.add(token, self.number(part * shape.lanes + lane))
                start = build.mul(self.minimum(index, last_token), self.given.inputs)
                rows.append(self.at(self.given.x, start, self.float))

            def columns(index: Value, rows: list[Value] = rows, part: int = part) -> list[Value]:
                column = self.minimum(index, last_column)  # the last ones overlap
                loaded = [
                    build.load(self.at(row, column, self.float), typ=self.vector, align=4)
                    for row in rows
                ]
                for lane, value in enumerate(self.transposed(loaded)):
                    place = build.mul(
                        build.add(column, self.number(lane)), self.number(shape.vectors)
                    )
                    place = build.add(place, self.number(part))
                    build.store(value, self.at(self.panel, place, self.vector))
                return []

            self.loop(self.number(0), self.given.inputs, shape.lanes, columns)

    def group(self, group: Value, token: Value) -> list[Value]:
        """As many rows as a register has lanes: their sums, then transposed into ``y``."""
        build, shape = self.build, self.shape
        lanes = self.number(shape.lanes)
        last = build.sub(self.given.outputs, lanes)
        row = self.minimum(build.mul(group, lanes), last)  # the last ones overlap
        self.loop(self.number(0), lanes, 1, lambda place: self.row(row, place))
        for part in range(shape.vectors):
            sums = [
                self.load(self.tile, self.number(lane * shape.vectors + part), self.vector, 64)
                for lane in range(shape.lanes)
            ]
            for lane, value in enumerate(self.transposed(sums)):
                place = build.add(token, self.number(part * shape.lanes + lane))
                with build.if_then(build.icmp_signed("<", place, self.given.tokens)):
                    start = build.add(build.mul(place, self.given.outputs), row)
                    build.store(value, self.at(self.given.y, start, self.float), align=4)
        return []

    def row(self, first: Value, place: Value) -> list[Value]:
        """The sums of one row for a block of tokens, put into the tile."""
        build, shape = self.build, self.shape
        row = build.add(first, place)
        low = self.load(self.given.starts, row, self.int, 8)
        high = self.load(self.given.starts, build.add(row, self.number(1)), self.int, 8)
        bias = self.splat(self.load(self.given.bias, row, self.float, 4))
        zero = self.ir.Constant(self.vector, None)
        sums = [bias] * shape.vectors + [zero] * (shape.vectors * (shape.chains - 1))

        def nonzeros(index: Value, *sums: Value) -> list[Value]:
            new = list(sums)
            for step in range(shape.unroll):
                place = build.add(index, self.number(step))
                column = build.zext(self.load(self.given.offsets, place, self.int32, 4), self.int)
                value = self.splat(self.load(self.given.values, place, self.float, 4))
                start = build.mul(column, self.number(shape.vectors))
                for part in range(shape.vectors):
                    where = build.add(start, self.number(part))
                    tokens = self.load(self.panel, where, self.vector, 4 * shape.lanes)
                    chain = step % shape.chains * shape.vectors + part
                    new[chain] = build.call(self.fma, [value, tokens, new[chain]])
            return new

        sums = self.loop(low, high, shape.unroll, nonzeros, sums)
        for part in range(shape.vectors):
            total = sums[part]
            for chain in range(1, shape.chains):
                total = build.fadd(total, sums[chain * shape.vectors + part])
            where = build.add(build.mul(place, self.number(shape.vectors)), self.number(part))
            build.store(total, self.at(self.tile, where, self.vector))
        return []

    def define_run(self, threaded: bool) -> None:
        """The entry: one thread's work alone, or by every thread of the pool."""
        ir = self.ir
        run = self.function("run", [self.pointer, self.int32])
        build = self.build = ir.IRBuilder(run.append_basic_block())
        arguments, threads = run.args
        if threaded:
            worker = self.define_worker()
            parallel = self.function(
                "GOMP_parallel", [self.pointer, self.pointer, self.int32, self.int32]
            )
            zero, one = ir.Constant(self.int32, 0), ir.Constant(self.int32, 1)
            with build.if_then(build.icmp_signed(">", threads, one)):
                build.call(parallel, [worker, arguments, threads, zero])
                build.ret_void()
        build.call(self.task, [arguments, self.number(0), self.number(1)])
        build.ret_void()

    def define_worker(self) -> Value:
        """What each thread of the pool is given to run."""
        worker = self.function("worker", [self.pointer])
        build = self.ir.IRBuilder(worker.append_basic_block())
        own, all_of_them = (
            build.zext(build.call(self.function(name, [], self.int32), []), self.int)
            for name in ("omp_get_thread_num", "omp_get_num_threads")
        )
        build.call(self.task, [worker.args[0], own, all_of_them])
        build.ret_void()
        return worker


_THREADS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


@functools.cache
def shape_for_host() -> Shape:
    """How to use this machine's registers: two of tokens, each summed in four chains.

    Blocks of 32 tokens (AVX-512) measured best from one row of 32 tokens to 4,096 tokens.

    Raises:
        MissingExtraError: llvmlite is not installed.
    """
    binding: Value = require("llvmlite.binding", "sparse")
    features = binding.get_host_cpu_features()
    lanes = 16 if features.get("avx512f") else 8 if features.get("avx2") else 4
    return Shape(lanes=lanes, vectors=2, chains=4)


@functools.cache
def compiled(shape: Shape) -> Kernel:
    """``run(arguments, threads)`` as a C function; it releases the interpreter while it runs.

    Raises:
        MissingExtraError: llvmlite is not installed.
    """
    binding: Value = require("llvmlite.binding", "sparse")
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
    run.engine = engine  # type: ignore[attr-defined]  # frees the code when it is collected
    return run


def _openmp() -> ctypes.CDLL | None:
    """torch's own OpenMP library, whose threads already run; None if torch ships another one."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*")):
        library = ctypes.CDLL(str(path))
        if all(hasattr(library, name) for name in _THREADS):
            return library
    return None
