"""What is timed: each model in each engine, quantized once and kept in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig

from hfcompress.benchmark.forms import Bf16Engine, quantized_folder
from hfcompress.benchmark.kinds import ENGINES, EngineKind, kind_name
from hfcompress.benchmarking.config import BenchConfig
from hfcompress.benchmarking.inputs import InputSpec, input_spec
from hfcompress.errors import ConfigError, MissingExtraError, ModelError, TargetError
from hfcompress.measure.environment import cpu_abilities
from hfcompress.measure.size import calculate_model_size
from hfcompress.models.hub import fingerprint_folder, hub_errors
from hfcompress.models.loading import LoadedModel, ModelConfig, load_model, model_source
from hfcompress.quantization.backends.torch import TorchEngine
from hfcompress.quantization.engine import Engine
from hfcompress.quantization.folder import MANIFEST, read_manifest
from hfcompress.quantization.load import load

_FAST_BF16 = ("avx512_bf16", "amx_bf16", "bf16")


@dataclass(frozen=True)
class Subject:
    """One model in one engine.

    Attributes:
        model: its short name.
        engine: of `ENGINES`, or what a quantized folder's is called.
        spec: what it reads.
        bytes: of its own files.
        fingerprint: of the model that was given.
        open: threads -> the engine.
        source: what a fresh process loads: a quantized folder, or a model's path or name.
        dtype: of torch's own engines; empty where ``source`` is a quantized folder.
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
        """What sets it apart from the others."""
        return f"{self.model} · {self.engine}"


def find_subjects(
    models: Sequence[str],
    config: BenchConfig,
    tell: Callable[[str], None],
    stage: Callable[[str], None],
) -> list[Subject]:
    """Load every model, and quantize it for every engine.

    Args:
        models: hub names, folders or pkg://PACKAGE/PATH; quantized folders run in their engine.
        config: names the engines, or leaves it to what is installed.
        tell: takes one sentence for each engine that is left out.
        stage: takes what is being done.

    Raises:
        ConfigError: no model, a text longer than a model takes, or texts and images together.
        SourceError, ModelError: a model that cannot be loaded.
        MissingExtraError: no engine is left, since packages are missing.
    """
    if not models:
        raise ConfigError("there is no model to time; give at least one")
    found: list[Subject] = []
    for path, name in zip(models, _names(models), strict=True):
        stage(f"loading {name}")
        if (Path(path) / MANIFEST).is_file():
            found.append(_of_folder(Path(path), name))
        else:
            found += _of_checkpoint(path, name, config, tell, stage)
    _check(found, config)
    return found


def _names(models: Sequence[str]) -> list[str]:
    """The last part of each path; the whole where two are alike."""
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
    spec = input_spec(AutoConfig.from_pretrained(folder), tuple(manifest["inputs"]))
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
    tell: Callable[[str], None],
    stage: Callable[[str], None],
) -> Iterator[Subject]:
    loaded = load_model(ModelConfig(path=path), task_of(path), processor=False)
    missing: MissingExtraError | None = None
    count = 0
    for engine, kind in ENGINES.items():
        if config.engine is not None and engine not in config.engine:
            continue
        if config.engine is None and "bf16" in engine and not _has_bf16():
            tell(f"{engine} is left out: this processor has no bf16 instructions")
            continue
        try:
            stage(f"{engine} of {name}")
            yield _subject(path, name, engine, kind, loaded)
            count += 1
        except MissingExtraError as error:
            missing = error
            tell(f"{engine} is left out: {error}")
        except (ModelError, TargetError) as error:
            tell(f"{engine} is left out for {name}: {error}")
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


def _has_bf16() -> bool:
    known = cpu_abilities()
    return any(known.get(name) for name in _FAST_BF16)


def task_of(path: str) -> str:
    """Texts or images, as the checkpoint's class says."""
    source = model_source(ModelConfig(path=path))
    with hub_errors(source, "model", "give a FOLDER"):
        settings = AutoConfig.from_pretrained(source.location)
    names = getattr(settings, "architectures", None) or ()
    images = any("ImageClassification" in name for name in names)
    return "image-classification" if images else "text-classification"
