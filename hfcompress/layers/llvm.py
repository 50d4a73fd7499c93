"""Words for writing a kernel in LLVM IR with llvmlite: loops, loads, registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hfcompress.utils import require

Value = Any
"""An object of llvmlite, which has no types to import."""


class Builder:
    """An IR module under construction.

    Args:
        lanes: fp32 numbers in a register, a power of two.

    Attributes:
        module: what is built.
        build: llvmlite's builder, positioned at the next instruction.

    Raises:
        MissingExtraError: llvmlite is not installed.
    """

    def __init__(self, lanes: int) -> None:
        ir: Value = require("llvmlite.ir", "sparse")
        self.ir, self.lanes = ir, lanes
        self.module = ir.Module("sparse")
        self.int, self.int32, self.float = ir.IntType(64), ir.IntType(32), ir.FloatType()
        self.pointer = ir.PointerType()
        self.vector = ir.VectorType(self.float, lanes)
        self.build: Value = None

    def function(self, name: str, arguments: list[Value], result: Value = None) -> Value:
        """Declare a function; it has a body once blocks are added."""
        kind = self.ir.FunctionType(result or self.ir.VoidType(), arguments)
        return self.ir.Function(self.module, kind, name)

    def number(self, value: int) -> Value:
        """A 64-bit constant."""
        return self.ir.Constant(self.int, value)

    def at(self, base: Value, index: Value, kind: Value) -> Value:
        """The address of an element."""
        return self.build.gep(base, [index], source_etype=kind)

    def load(self, base: Value, index: Value, kind: Value, align: int) -> Value:
        """An element."""
        return self.build.load(self.at(base, index, kind), typ=kind, align=align)

    def minimum(self, left: Value, right: Value) -> Value:
        """The smaller one."""
        return self.build.select(self.build.icmp_signed("<", left, right), left, right)

    def ceiling(self, value: Value, step: int) -> Value:
        """Quotient rounded up."""
        more = self.build.add(value, self.number(step - 1))
        return self.build.sdiv(more, self.number(step))

    def share(self, total: Value, place: Value, places: Value) -> Value:
        """Where the part of one of several places begins."""
        return self.build.sdiv(self.build.mul(total, place), places)

    def loop(
        self,
        first: Value,
        end: Value,
        step: int,
        body: Callable[..., list[Value]],
        carried: list[Value] | None = None,
    ) -> list[Value]:
        """``for index in range(first, end, step): carried = body(index, *carried)``."""
        build, before = self.build, self.build.block
        test, inside, done = (build.append_basic_block() for _ in range(3))
        build.branch(test)
        build.position_at_end(test)
        index = build.phi(self.int)
        index.add_incoming(first, before)
        values = []
        for value in carried or []:
            values.append(build.phi(value.type))
            values[-1].add_incoming(value, before)
        build.cbranch(build.icmp_signed("<", index, end), inside, done)
        build.position_at_end(inside)
        results = body(index, *values)
        index.add_incoming(build.add(index, self.number(step)), build.block)
        for value, result in zip(values, results, strict=True):
            value.add_incoming(result, build.block)
        build.branch(test)
        build.position_at_end(done)
        return values

    def splat(self, value: Value) -> Value:
        """A register full of one number."""
        undefined = self.ir.Constant(self.vector, self.ir.Undefined)
        one = self.build.insert_element(undefined, value, self.ir.Constant(self.int32, 0))
        return self.shuffle(one, one, [0] * self.lanes)

    def shuffle(self, left: Value, right: Value, places: list[int]) -> Value:
        """Lanes of two registers, numbered one after the other, in another order."""
        mask = self.ir.Constant(self.ir.VectorType(self.int32, len(places)), places)
        return self.build.shuffle_vector(left, right, mask)

    def transposed(self, rows: list[Value]) -> list[Value]:
        """A square of registers transposed, by swapping ever larger quarters (Eklundh)."""
        lanes, rows = self.lanes, list(rows)
        step = 1
        while step < lanes:
            low = [lane if not lane & step else lanes + lane - step for lane in range(lanes)]
            high = [lane + step if not lane & step else lanes + lane for lane in range(lanes)]
            for first in range(lanes):
                if not first & step:
                    pair = rows[first], rows[first + step]
                    rows[first] = self.shuffle(*pair, low)
                    rows[first + step] = self.shuffle(*pair, high)
            step *= 2
        return rows
