"""The subjects of a bench: each model in each engine, quantized once and cached."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from hfcompress.benchmarking.config import ENGINES, BenchConfig, EngineKind, kind_name
from hfcompress.benchmarking.inputs import IMAGE, InputSpec, input_spec, make_inputs
from hfcompress.errors import (
    ConfigError,
    MissingExtraError,
    ModelError,
    TargetError,
    first_line,
)
from hfcompress.measure.environment import has_fast_bf16
from hfcompress.measure.size import calculate_model_size
from hfcompress.models.hub import fingerprint_folder
from hfcompress.models.loading import LoadedModel, ModelConfig, load_model
from hfcompress.quantization.backends.torch import TorchEngine
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.engine import Arrays, Engine
from hfcompress.quantization.load import load
from hfcompress.quantization.manifest import MANIFEST, read_manifest
from hfcompress.quantization.quantize import quantize
from hfcompress.tasks.registry import task_of_checkpoint
from hfcompress.utils import cache_folder


@dataclass(frozen=True)
class Subject:
    """One model in one engine.

    Attributes:
        model: its short name.
        engine: a name of `ENGINES`, or of a quantized folder's engine.
        spec: its inputs.
        bytes: of its own files.
        fingerprint: of the given model.
        open: threads -> the engine.
        source: what a fresh process loads: a quantized folder, or a model's path or name.
        dtype: of torch's own engines; empty if ``source`` is a quantized folder.
    """

    model: str
    engine: str
    spec: InputSpec
    bytes: int
    fingerprint: str
    open: Callable[[int], Engine]
    source: str
    dtype: str = ""

    @property
    def label(self) -> str:
        """Return the name that distinguishes it from the others."""
        return f"{self.model} · {self.engine}"


def find_subjects(
    models: Sequence[str],
    config: BenchConfig,
    log: Callable[[str], None],
    stage: Callable[[str], None],
) -> list[Subject]:
    """Load every model, quantize it for every engine and return the subjects.

    Args:
        models: hub names, folders or pkg://PACKAGE/PATH; quantized folders run in their engine.
        config: names the engines; all installed ones by default.
        log: receives one sentence for each engine that is left out.
        stage: receives the current stage.

    Raises:
        ConfigError: no model, a text longer than a model takes, or texts and images together.
        SourceError, ModelError: a model that cannot be loaded.
        MissingExtraError: no engine is left because packages are missing.
    """
    if not models:
        raise ConfigError("no model to time; give at least one")
    found: list[Subject] = []
    for path, name in zip(models, _names(models), strict=True):
        stage(f"loading {name}")
        if (Path(path) / MANIFEST).is_file():
            found.append(_of_folder(Path(path), name))
        else:
            found += _of_checkpoint(path, name, config, log, stage)
    _check(found, config)
    return found


def _names(models: Sequence[str]) -> list[str]:
    """Return the last part of each path; the whole path if two are equal."""
    short = [path.rstrip("/").rsplit("/", 1)[-1] or path for path in models]
    return [
        name if short.count(name) == 1 else path for name, path in zip(short, models, strict=True)
    ]


def _check(subjects: Sequence[Subject], config: BenchConfig) -> None:
    if len({subject.spec.images for subject in subjects}) > 1:
        raise ConfigError("texts and images cannot be compared; give models of one kind")
    if len({subject.label for subject in subjects}) < len(subjects):
        raise ConfigError("the same model is given twice; give each once")
    for subject in subjects:
        longest = subject.spec.longest
        if longest and max(config.length) > longest:
            raise ConfigError(
                f"{subject.model} takes {longest} tokens at most and length asks for "
                f"{max(config.length)}; write a shorter length"
            )


# --- quantized folders -------------------------------------------------------------------------


def _of_folder(folder: Path, name: str) -> Subject:
    manifest = read_manifest(folder)
    done, settings = manifest["done"], manifest["quantization"]
    engine = kind_name(
        manifest["backend"], done["mode"], settings.get("floats", "fp32"), settings.get("bits", 8)
    )
    try:
        known = AutoConfig.from_pretrained(  # nosec B615 # a local folder
            folder, trust_remote_code=False, local_files_only=True
        )
        spec = input_spec(known, tuple(manifest["inputs"]))
    except Exception as error:  # a damaged config raises many kinds
        raise ModelError(
            f"{str(folder)!r} does not say which inputs its model reads ({first_line(error)}); "
            f"bench times transformers models"
        ) from None
    fingerprint = str(done["bytes"]) + fingerprint_folder(folder)
    return _from_folder(folder, name, engine, spec, fingerprint)


def _from_folder(
    folder: Path, name: str, engine: str, spec: InputSpec, fingerprint: str
) -> Subject:
    size = int(read_manifest(folder)["done"]["bytes"])
    return Subject(
        name,
        engine,
        spec,
        size,
        fingerprint,
        lambda threads: load(folder, threads).engine,
        str(folder),
    )


# --- checkpoints -------------------------------------------------------------------------------


def _of_checkpoint(
    path: str,
    name: str,
    config: BenchConfig,
    log: Callable[[str], None],
    stage: Callable[[str], None],
) -> Iterator[Subject]:
    loaded = load_model(ModelConfig(path=path), task_of_checkpoint(path), processor=False)
    missing: MissingExtraError | None = None
    count = 0
    for engine, kind in ENGINES.items():
        if config.engine is not None and engine not in config.engine:
            continue
        if config.engine is None and "bf16" in engine and not has_fast_bf16():
            log(f"{engine} is left out: this processor has no bf16 instructions")
            continue
        try:
            stage(f"{engine} of {name}")
            yield _subject(path, name, engine, kind, loaded)
            count += 1
        except MissingExtraError as error:
            missing = error
            log(f"{engine} is left out: {error}")
        except (ModelError, TargetError) as error:
            log(f"{engine} is left out for {name}: {error}")
    if not count:
        raise missing or ModelError(f"no engine can run {name}; see the notes above")


def _subject(path: str, name: str, engine: str, kind: EngineKind, loaded: LoadedModel) -> Subject:
    model = loaded.model
    if kind.dtype:
        dense = TorchEngine(model)
        size = calculate_model_size(model, "fp16" if kind.dtype == "bfloat16" else "fp32")
        spec = input_spec(model.config, dense.inputs)

        def open_torch(threads: int) -> Engine:
            return dense if kind.dtype == "float32" else Bf16Engine(model)

        return Subject(name, engine, spec, size, loaded.fingerprint, open_torch, path, kind.dtype)
    folder = quantized_folder(loaded, kind)
    spec = input_spec(model.config, tuple(read_manifest(folder)["inputs"]))
    return _from_folder(folder, name, engine, spec, loaded.fingerprint)


# Rows and tokens; enough for ranges of activations, because a bench measures speed only.
_CALIBRATION = (8, 32)


class Bf16Engine(TorchEngine):
    """Runs a copy of a model in bf16."""

    def __init__(self, model: PreTrainedModel) -> None:
        half = copy.deepcopy(model)
        nn.Module.to(half, torch.bfloat16)
        super().__init__(half)

    def logits(self, arrays: Arrays) -> NDArray[np.float32]:
        """Return the logits of one batch; pixels are converted to bf16 first."""
        if IMAGE not in arrays:
            return super().logits(arrays)
        with torch.inference_mode():
            pixels = torch.from_numpy(arrays[IMAGE]).bfloat16()
            logits = self.model(pixel_values=pixels).logits
        return np.asarray(logits.float().numpy(), np.float32)


def quantized_folder(loaded: LoadedModel, kind: EngineKind) -> Path:
    """Return the folder of the quantized model, from the cache if it is there."""
    settings = QuantizationConfig.from_dict(kind.quantization)
    folder = cache_folder() / "bench" / _key(loaded.fingerprint, settings)
    if not (folder / MANIFEST).is_file():
        model = loaded.model
        batches = []
        if settings.needs_calibration:
            names = TorchEngine(model).inputs
            arrays = make_inputs(input_spec(model.config, names), *_CALIBRATION)
            batches = [{key: torch.from_numpy(value) for key, value in arrays.items()}]
        quantize(model, settings, batches).save(folder)
    return folder


def _key(fingerprint: str, settings: QuantizationConfig) -> str:
    packages = ("hfcompress", settings.backend, "torch", "transformers", "nncf")
    parts = [fingerprint, settings.to_dict(), {name: _version(name) for name in packages}]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
