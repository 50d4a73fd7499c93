"""`load_model`: the task decides the Auto class, the data decide the labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeAlias, cast

import torch
import transformers
from pydantic import Field, model_validator
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import hfcompress.models.modeling_text as text_models
from hfcompress.config import Config
from hfcompress.errors import ConfigError, ModelError, SourceError
from hfcompress.models.checkpoint_checks import check_layers, check_tensors, folder_errors
from hfcompress.models.download import Commit, fetch_model, fingerprint, from_hub
from hfcompress.models.embedding_layout import Pooling
from hfcompress.models.heads import align_head, head_options
from hfcompress.models.hub import Source, read_license, resolve
from hfcompress.models.image_models import (
    channels_of_config,
    fingerprint_new,
    new_config,
    new_model,
    plain_processor,
    size_of,
    timm_named,
    timm_processor,
)
from hfcompress.models.labels import (
    Alignment,
)
from hfcompress.models.modeling_embedding import EmbeddingModel, limit_texts, pooling_options
from hfcompress.models.outputs import OutputKind

Modality = Literal["text", "image"]
Numbers = Annotated[tuple[float, ...], Field(strict=False)]
Processor: TypeAlias = PreTrainedTokenizerBase | BaseImageProcessor


class AutoClass(Protocol):
    """A class such as ``AutoModelForSequenceClassification``."""

    __name__: str

    def from_pretrained(
        self, location: str, **options: object
    ) -> tuple[PreTrainedModel, dict[str, list[Any]]]:
        """Load a model; with ``output_loading_info`` also what was missing."""
        ...


class TaskOfModel(Protocol):
    """What loading asks of a task; see `hfcompress.tasks.task.Task`."""

    @property
    def modality(self) -> Modality:
        """What its models read."""
        ...

    def auto_class(self) -> AutoClass:
        """Return the class that loads its models."""
        ...


class ModelConfig(Config):
    """Which model to load or to create; in a recipe a path alone is enough."""

    path: str | None = Field(None, description="hub name, local folder, or pkg://PACKAGE/PATH")
    config: dict[str, object] | None = Field(
        None,
        description="instead of a path: model_type and fields of its transformers config, for an "
        "image model that starts from random weights",
    )
    image_size: int | None = Field(
        None, ge=1, description="side of the images in pixels, for a model without a processor"
    )
    image_mean: Numbers | None = Field(
        None, description="mean of each channel, of values from 0 to 1, likewise; 0.5 by default"
    )
    image_std: Numbers | None = Field(
        None, description="standard deviation of each channel, likewise; 0.5 by default"
    )
    pooling: Pooling | None = Field(
        None, description="of token states, for an embedding model whose folder does not say it"
    )
    normalize: bool | None = Field(None, description="vectors of length 1, likewise")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    trust_remote_code: bool = Field(
        False, description="run Python code that the checkpoint carries; off unless you say so"
    )

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, data: object) -> object:
        return {"path": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.path is None) == (self.config is None):
            raise ValueError(
                "write path, for a checkpoint, or config, for a model from scratch"
                + ("" if self.path is None else ", not both")
            )
        if self.config is not None:
            new_config(self.config, self.image_size)
        return self

    @property
    def name(self) -> str:
        """What messages call the model."""
        return self.path if self.path is not None else f"a new {(self.config or {})['model_type']}"

    @property
    def named(self) -> str:
        """The name with what it is, as the begin of a sentence."""
        return f"model {self.name!r}"


@dataclass(frozen=True)
class LoadedModel:
    """A model and the processor that makes its inputs.

    Attributes:
        model: in eval mode, fp32.
        processor: its tokenizer or image processor.
        new_head: the classifier is freshly initialised and must be trained first.
        fingerprint: hash of the checkpoint's content (or hub name and commit).
        alignment: which of its classes each of the data's labels means; None where nobody asked.
        license: what the checkpoint's card says; None without one.
    """

    model: PreTrainedModel
    processor: Any
    new_head: bool
    fingerprint: str
    alignment: Alignment | None = None
    license: str | None = None


def check_source(config: ModelConfig) -> None:
    """Check that a model's path exists; nothing is loaded.

    Raises:
        SourceError: no such path, or a folder without a ``config.json``.
    """
    if config.path is not None:
        model_source(config)


def model_source(config: ModelConfig) -> Source:
    """The source of the model's path; a local one must have a config.json.

    Raises:
        SourceError: no such path, or a folder without a ``config.json``.
    """
    assert config.path is not None
    source = resolve(config.path, "model")
    if source.path is not None and not (source.path / "config.json").is_file():
        raise SourceError(
            f"model: {config.path!r} has no config.json; give the folder that save_pretrained wrote"
        )
    return source


def load_model(
    config: ModelConfig,
    task: TaskOfModel,
    labels: list[str] | None = None,
    seed: int = 0,
    processor: bool = True,
    new_head: bool = True,
    kind: OutputKind = "classification",
) -> LoadedModel:
    """Load a model, its processor and its fingerprint.

    Args:
        config: which model.
        task: decides the Auto class and the kind of processor.
        labels: the data's label names in order; a model whose labels do not correspond gets a new
            head.
        seed: initialises a new head.
        processor: load it, too; without, ``processor`` is None and the folder needs none.
        new_head: a step will train, so that the head may be a new one.
        kind: what a new head's outputs mean.

    Raises:
        SourceError: no such path, or the hub cannot be reached.
        ModelError: a damaged checkpoint, one that names code of its own, or labels that do not
            correspond, where no step trains a new head.
        DataError: labels that may count the model's classes from 0 or from 1.
    """
    if config.config is not None:
        return _new(config, task, labels, seed)
    source, labels = model_source(config), labels or None
    load = partial(_load, config, source, task, labels, seed, processor, new_head, kind)
    with timm_named(config.name), folder_errors(source, config.named):
        return from_hub(source, "model", "--set model=FOLDER", load, config.revision)


def _load(
    config: ModelConfig,
    source: Source,
    task: TaskOfModel,
    labels: list[str] | None,
    seed: int,
    processor: bool,
    new_head: bool,
    kind: OutputKind,
    commit: Commit | None,
) -> LoadedModel:
    """`load_model` of a folder, or of one commit on the hub."""
    folder, revision = fetch_model(source, commit)
    options: dict[str, bool | str] = {"trust_remote_code": config.trust_remote_code, **revision}
    settings = AutoConfig.from_pretrained(source.location, **options)  # nosec B615 # in options
    if source.path is not None:
        check_layers(source.path, settings, config.named)
    alignment = align_head(settings, labels, config.name, new_head, kind)
    head = head_options(settings, labels, alignment, kind)

    def load(head: dict[str, object]) -> tuple[PreTrainedModel, dict[str, list[Any]]]:
        torch.manual_seed(seed)
        return task.auto_class().from_pretrained(
            source.location,
            **options,
            **head,
            **pooling_options(task.auto_class(), config.pooling, config.normalize),
            output_loading_info=True,
            dtype=torch.float32,
        )

    model, info = load(head)
    check_tensors(model, info, config.named)
    loaded: Processor | None = (
        _load_processor(config, source.location, task, settings, options) if processor else None
    )
    renewed = alignment is None and labels is not None and not _missing(info)
    if renewed:
        larger = head_options(settings, [*(labels or ()), ""], None, kind)
        _renew_head(model, *load(larger))
    vectors = limit_texts(model, loaded, config.name) if isinstance(model, EmbeddingModel) else ""
    return LoadedModel(
        model=model.train(False),
        processor=loaded,
        new_head=renewed or bool(_missing(info)),
        # The fingerprint says which head a cached result began with.
        fingerprint=fingerprint(source, commit) + vectors + ("+new-head" if renewed else ""),
        alignment=alignment,
        license=read_license(folder),
    )


def _missing(info: Mapping[str, list[Any]]) -> list[str]:
    """Parameters that are not in the checkpoint, or not in the model's shape."""
    return [*info["missing_keys"], *(item[0] for item in info["mismatched_keys"])]


def _renew_head(
    model: PreTrainedModel, larger: PreTrainedModel, info: Mapping[str, list[Any]]
) -> None:
    """Replace the classifier's trained weights by new ones.

    Args:
        model: changed in place.
        larger: the same model with one class more, whose classifier is new.
        info: what was not loaded into ``larger``.
    """
    parameters, new = dict(model.named_parameters()), dict(larger.named_parameters())
    for name in _missing(info):
        old = parameters[name]
        old.data = new[name].data[tuple(map(slice, old.shape))].clone()


def _new(
    config: ModelConfig, task: TaskOfModel, labels: list[str] | None, seed: int
) -> LoadedModel:
    """A model from scratch and the processor that fits it."""
    if task.modality != "image":
        raise ConfigError(
            "model.config makes models of images; a model of text needs the tokenizer of a "
            "checkpoint: give model a path"
        )
    settings = new_config(config.config or {}, config.image_size)
    processor = _own_processor(config, settings, task)
    fingerprint = fingerprint_new(settings, processor)
    size = size_of(settings, config.image_size)
    model = new_model(settings, labels or ["0", "1"], seed, size, task.auto_class())
    return LoadedModel(model, processor, True, fingerprint)


def _own_processor(
    config: ModelConfig, settings: PreTrainedConfig, task: TaskOfModel
) -> BaseImageProcessor:
    """The processor that the recipe describes."""
    size, channels = size_of(settings, config.image_size), channels_of_config(settings)
    masks = task.auto_class().__name__.endswith("SemanticSegmentation")
    return plain_processor(size, channels, config.image_mean, config.image_std, masks)


def _load_processor(
    config: ModelConfig,
    location: str,
    task: TaskOfModel,
    settings: PreTrainedConfig,
    options: dict[str, bool | str],
) -> Processor:
    if task.modality == "text":
        return AutoTokenizer.from_pretrained(location, **options)  # nosec B615 # in options
    if config.image_size is not None or config.image_mean is not None or config.image_std:
        return _own_processor(config, settings, task)
    if settings.model_type == "timm_wrapper":
        return timm_processor(settings)
    # The PIL backend: torchvision is not needed, and it gives the same pixels everywhere.
    try:
        processor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]  # nosec B615
            location, backend="pil", **options
        )
    except OSError as error:
        if "preprocessor_config" not in str(error):
            raise
        raise ModelError(
            f"model {config.name!r} has no preprocessor_config.json; save its image processor "
            f"there, or write model.image_size (and image_mean, image_std)"
        ) from None
    if channels_of_config(settings) == 1 and len(processor.image_mean or ()) == 3:
        # The processor normalises three channels and the model reads one: take their mean.
        for name in ("image_mean", "image_std"):
            setattr(processor, name, [sum(getattr(processor, name)) / 3])
    return cast(BaseImageProcessor, processor)


def saved_class(folder: Path, like: PreTrainedModel) -> type[PreTrainedModel]:
    """The class that saved a model; the class of ``like`` where no other is known.

    Args:
        folder: as ``save_pretrained`` left it.
        like: a model that is usually of the same class.
    """
    if isinstance(like, EmbeddingModel):  # its config names the transformer's class
        return type(like)
    data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in data.get("architectures") or ():
        if name == type(like).__name__:
            break
        found = getattr(transformers, name, None) or getattr(text_models, name, None)
        if found is not None:
            return cast("type[PreTrainedModel]", found)
    return type(like)


def weights_hash(model: nn.Module) -> str:
    """Hash of every parameter and buffer."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
