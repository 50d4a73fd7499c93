"""Whether this processor multiplies 8-bit integers fast."""

from __future__ import annotations

from hfcompress.measure.environment import cpu_abilities

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
