"""``feasibility``: where models could run, from their size, memory, engine, time and energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from hfcompress.benchmarking.config import BenchConfig
from hfcompress.benchmarking.inputs import make_inputs
from hfcompress.benchmarking.memory import measure_memory
from hfcompress.benchmarking.subjects import Subject, find_subjects
from hfcompress.benchmarking.timing import points_of, timed_rows
from hfcompress.measure.macs import count_macs
from hfcompress.measure.profiles import (
    MEGABYTE,
    PROFILES,
    Energy,
    Profile,
    estimated_energy,
)
from hfcompress.quantization.backends.torch import TorchEngine
from hfcompress.quantization.manifest import MANIFEST, read_manifest
from hfcompress.utils import Fields, Progress

_MANIFEST_TOKENS = 32  # that a saved folder's multiply-accumulates were counted for


@dataclass(frozen=True)
class Verdict:
    """Whether a model could run in one place.

    Attributes:
        profile: the place.
        reasons: why not, a few words each; empty where it could.
    """

    profile: str
    reasons: tuple[str, ...]

    @property
    def feasible(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons


@dataclass(frozen=True)
class Feasibility:
    """What one model needs, and where that is to be had.

    Attributes:
        model: its short name.
        engine: what it was run with here.
        bytes: of its own files.
        memory: bytes that its process grew by over Python and the engine's library, weights
            included; None where that could not be measured.
        milliseconds: median of one forward pass on this machine, one example on one thread.
        macs: multiply-accumulates of that pass; None of a folder that does not say.
        energy: estimated, of that pass; None where ``macs`` is.
        verdicts: one for each profile.
        notes: what was not measured, and why.
    """

    model: str
    engine: str
    bytes: int
    memory: int | None
    milliseconds: float
    macs: int | None
    energy: Energy | None
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> Fields:
        """Return plain data, the energy in millijoules."""
        plain = asdict(self)
        plain["millijoules"] = None if self.energy is None else 1000 * self.energy.total
        plain["verdicts"] = {item.profile: list(item.reasons) for item in self.verdicts}
        del plain["energy"]
        return plain


def feasibility(
    models: Sequence[str] | str, length: int = 32, progress: Progress | None = None
) -> list[Feasibility]:
    """Measure what models need, and compare it with what each profile has::

        for found in feasibility(["my-model", "my-model-int8"]):
            print(found.model, [place.profile for place in found.verdicts if place.feasible])

    A quantized folder runs in its engine, a checkpoint in torch, on one thread and one example.
    Time and memory are this machine's; energy is an estimate (`hfcompress.measure.profiles`).

    Args:
        models: hub names, folders of checkpoints or of quantized models.
        length: tokens of a text; images have a size of their own.
        progress: receives stages.

    Raises:
        ConfigError: no model, the same one twice, no tokens, or a text longer than a model takes.
        SourceError, ModelError: a model that cannot be loaded.
        MissingExtraError: a quantized folder's engine is not installed.
    """
    progress = progress or Progress()
    names = [models] if isinstance(models, str) else list(models)
    config = BenchConfig(
        batch=(1,), length=(length,), threads=(1,), engine=("torch-fp32",), memory=False
    )
    subjects = find_subjects(names, config, progress.note, progress.stage)
    rows = list(timed_rows(points_of(config, subjects), subjects, config, progress))
    return [
        _needs(subject, float(row["median"]), length, progress)
        for subject, row in zip(subjects, rows, strict=True)
    ]


def _needs(subject: Subject, milliseconds: float, length: int, progress: Progress) -> Feasibility:
    progress.stage(f"memory of {subject.label}")
    shape = (1, 1 if subject.spec.images else length)
    found = measure_memory(subject, [shape], threads=1)
    memory = None if isinstance(found, str) else found.peaks[shape] - found.before
    notes = [found] if isinstance(found, str) else []
    macs = _macs(subject, length)
    if macs is None:
        notes.append(
            f"{subject.model} was saved without its multiply-accumulates, so that its energy is "
            f"not estimated; quantize it again"
        )
    elif length != _MANIFEST_TOKENS and not subject.spec.images and _is_quantized(subject):
        notes.append(
            f"{subject.model}: multiply-accumulates are those of {_MANIFEST_TOKENS} tokens, in "
            f"proportion; attention's own products grow faster"
        )
    return Feasibility(
        model=subject.model,
        engine=subject.engine,
        bytes=subject.bytes,
        memory=memory,
        milliseconds=milliseconds,
        macs=None if macs is None else sum(macs),
        energy=None if macs is None else estimated_energy(*macs, subject.bytes),
        verdicts=tuple(_verdict(profile, subject, memory) for profile in PROFILES),
        notes=tuple(notes),
    )


def _is_quantized(subject: Subject) -> bool:
    return (Path(subject.source) / MANIFEST).is_file()


def _macs(subject: Subject, length: int) -> tuple[int, int] | None:
    """Return multiply-accumulates in floating point and with integer weights; None if unknown."""
    if not _is_quantized(subject):
        engine = subject.open(1)
        assert isinstance(engine, TorchEngine)
        arrays = make_inputs(subject.spec, 1, length)
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return count_macs(engine.model, inputs).total, 0
    done = read_manifest(Path(subject.source))["done"]
    if "total_macs" not in done:
        return None
    total = done["total_macs"] * (1.0 if subject.spec.images else length / _MANIFEST_TOKENS)
    return round(total * (1 - done["share_of_macs"])), round(total * done["share_of_macs"])


def _verdict(profile: Profile, subject: Subject, memory: int | None) -> Verdict:
    reasons = []
    if not profile.fits(subject.bytes):
        limit = profile.max_bytes / MEGABYTE
        reasons.append(f"{subject.bytes / MEGABYTE:.3g} MB in files, {limit:g} MB at most")
    engine = subject.engine.split("-")[0]
    if engine not in profile.engines:
        reasons.append(f"runs {' or '.join(profile.engines)}, not {engine}")
    if memory is not None:
        needed = max(0, memory - subject.bytes) if profile.runs_from_flash else memory
        if needed > profile.max_memory:
            limit = profile.max_memory / MEGABYTE
            reasons.append(f"{needed / MEGABYTE:.3g} MB in memory, {limit:g} MB at most")
    return Verdict(profile.name, tuple(reasons))
