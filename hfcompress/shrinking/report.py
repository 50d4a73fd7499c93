"""``ShrinkReport``: the result of `shrink` or of its dry run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hfcompress.utils import FormerPlain


@dataclass(frozen=True)
class SublayerReport:
    """One sublayer or group of channels before and after.

    Attributes:
        name: path of its output projection, or of the first layer that makes the channels.
        kind: ``"heads"``, ``"neurons"`` or ``"channels"``.
        units: how many there were.
        keep: numbers of those that are left, ascending.
        error: estimated change of the predictions (KL, nats) by this sublayer alone; None where
            it was not measured.
    """

    name: str
    kind: str
    units: int
    keep: tuple[int, ...]
    error: float | None = None

    @property
    def width(self) -> int:
        """The number of units left."""
        return len(self.keep)


@dataclass(frozen=True)
class Amount:
    """A size before and after (of a preview: as it would be)."""

    dense: float
    shrunk: float

    @property
    def share(self) -> float:
        """The shrunk size as a share of the dense model's."""
        return self.shrunk / self.dense


@dataclass(frozen=True)
class Latencies:
    """Milliseconds of a forward pass on this machine.

    Attributes:
        dense: of the dense model, timed beside the shrunk one.
        predicted: of the shrunk model, when its widths were chosen.
        measured: of the shrunk model; None for a preview.
    """

    dense: float
    predicted: float
    measured: float | None = None


@dataclass(frozen=True)
class ShrinkReport(FormerPlain):
    """The result of `shrink`, or with ``dry_run`` its preview.

    Attributes:
        budget: the field of the config that said how small; None for ``layers`` alone.
        requested: its value.
        parts: one record for each sublayer that was looked at, in model order.
        dropped_layers: numbers of the layers that were removed whole.
        macs: multiply-accumulates of all layers for one token.
        parameters: of the whole model.
        latency: None unless the budget is one.
        dry_run: nothing has been changed.
        notes: sentences about what the caller should know.
    """

    budget: str | None
    requested: float | None
    parts: tuple[SublayerReport, ...]
    dropped_layers: tuple[int, ...]
    macs: Amount
    parameters: Amount
    latency: Latencies | None = None
    dry_run: bool = False
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        verb = "would keep" if self.dry_run else "kept"
        return (
            f"ShrinkReport({verb} {self.macs.share:.1%} of the multiply-accumulates and "
            f"{self.parameters.share:.1%} of the parameters; {len(self.parts)} parts, "
            f"{len(self.notes)} notes)"
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data for JSON."""
        data = asdict(self)
        data["parts"] = [
            {"name": p.name, "kind": p.kind, "units": p.units, "width": p.width, "error": p.error}
            for p in self.parts
        ]
        return {key: _listed(value) for key, value in data.items()}

    def __str__(self) -> str:
        """A table: each layer's heads and neurons before and after."""
        verb = "would keep" if self.dry_run else "kept"
        lines = [f"{verb} {self.macs.share:.1%} of the layers' multiply-accumulates, "
                 f"{self.parameters.share:.1%} of the parameters"]  # fmt: skip
        if self.latency is not None:
            measured = self.latency.measured
            timed = "" if measured is None else f", measured {measured:.3g} ms"
            predicted = f"predicted {self.latency.predicted:.3g} ms{timed}"
            lines.append(f"{self.latency.dense:.3g} ms dense, {predicted}")
        if self.dropped_layers:
            lines.append(f"layers removed: {', '.join(map(str, self.dropped_layers))}")
        widest = max((len(part.name) for part in self.parts), default=0)
        for part in self.parts:
            lines.append(f"{part.name:<{widest}}  {part.kind:<7}  {part.units:>5} -> {part.width}")
        return "\n".join([*lines, *self.notes])


def _listed(value: object) -> object:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
