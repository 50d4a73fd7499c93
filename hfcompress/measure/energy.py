"""An estimate of the energy of one forward pass, from operations and bytes.

Mark Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, figure 1.1.9:
energy of an operation in a 45 nm process at 0.9 V. Later processes need less of everything, memory
stays the dearest part; so ratios between models say more than the figures themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

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
