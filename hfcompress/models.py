"""Models by name: the task decides the Auto class, the data decide the labels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from pydantic import Field, model_validator
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedModel

import hfcompress.text_models as text_models
from hfcompress.config import Config, nearest
from hfcompress.errors import ConfigError, ModelError, SourceError
from hfcompress.sources import (
    Source,
    fingerprint_folder,
    hub_errors,
    resolve,
)

Modality = Literal["text", "image"]
# The tasks that can be measured here: one label for each example.
TASK_MODALITY: dict[str, Modality] = {
    "text-classification": "text",
    "image-classification": "image",
}


class ModelConfig(Config):
    """Which model to load; in a recipe the path alone may stand for it."""

    path: str = Field(description="hub name, local folder, or pkg://PACKAGE/PATH")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    trust_remote_code: bool = Field(
        False, description="run Python code that the checkpoint carries; off unless you say so"
    )

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, data: object) -> object:
        return {"path": data} if isinstance(data, str) else data


@dataclass(frozen=True)
class LoadedModel:
    """A model with what turns raw examples into its inputs.

    Attributes:
        model: in eval mode, fp32.
        processor: its tokenizer or image processor.
        new_head: the classifier is freshly initialised and must be trained first.
        fingerprint: hash of the checkpoint's content (or hub name and commit).
    """

    model: PreTrainedModel
    processor: Any
    new_head: bool
    fingerprint: str


def task_modality(task: str) -> Modality:
    """Whether a task reads text or images.

    Raises:
        ConfigError: a task that cannot be measured here.
    """
    if task not in TASK_MODALITY:
        raise ConfigError(f"task {task!r} is not supported{nearest(task, list(TASK_MODALITY))}")
    return TASK_MODALITY[task]


def auto_class(task: str) -> Any:
    """The Auto class of a task, as optimum's ``TasksManager`` knows it."""
    from optimum.exporters.tasks import TasksManager

    task_modality(task)
    return TasksManager.get_model_class_for_task(task)


def model_source(config: ModelConfig) -> Source:
    """Resolve the model's path and check that a local one holds a model.

    Raises:
        SourceError: nothing there, or a folder without a ``config.json``.
    """
    source = resolve(config.path, "model")
    if source.path is not None and not (source.path / "config.json").is_file():
        raise SourceError(
            f"model: {config.path!r} holds no config.json; give the folder that "
            f"save_pretrained wrote"
        )
    return source


def load_model(
    config: ModelConfig,
    task: str,
    labels: list[str] | None = None,
    seed: int = 0,
    processor: bool = True,
) -> LoadedModel:
    """Load a model, its processor and its fingerprint.

    Args:
        config: which model.
        task: decides the Auto class and the kind of processor.
        labels: the data's label names in order; a model without a head for them gets a new one.
        seed: initialises a new head.
        processor: load it, too; without, ``processor`` is None and the folder needs none.

    Raises:
        SourceError: nothing there, or the hub cannot be reached.
        ModelError: a model whose own labels contradict the data's.
    """
    source = model_source(config)
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if source.kind == "hub":
        options["revision"] = config.revision or "main"
    with hub_errors(source, "model", "--set model=FOLDER"):
        settings = AutoConfig.from_pretrained(source.location, **options)
        head = _head_options(settings, labels, config.path)
        torch.manual_seed(seed)
        model, info = auto_class(task).from_pretrained(
            source.location, **options, **head, output_loading_info=True, dtype=torch.float32
        )
        found = _load_processor(source.location, task, options) if processor else None
    missing = [*info["missing_keys"], *(item[0] for item in info["mismatched_keys"])]
    return LoadedModel(model.eval(), found, bool(missing), _fingerprint(source, settings))


def _load_processor(location: str, task: str, options: dict[str, Any]) -> Any:
    if task_modality(task) == "text":
        return AutoTokenizer.from_pretrained(location, **options)
    # The PIL backend: torchvision is not needed, and it gives the same pixels everywhere.
    loader: Any = AutoImageProcessor
    return loader.from_pretrained(location, backend="pil", **options)


def saved_class(folder: Path, like: PreTrainedModel) -> type[PreTrainedModel]:
    """The class that saved a model; that of ``like`` where it is the one, or is not known.

    Args:
        folder: as ``save_pretrained`` left it.
        like: a model that is often of the same class.
    """
    data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in data.get("architectures") or ():
        if name == type(like).__name__:
            break
        found = getattr(transformers, name, None) or getattr(text_models, name, None)
        if found is not None:
            return cast("type[PreTrainedModel]", found)
    return type(like)


def _head_options(settings: Any, labels: list[str] | None, path: str) -> dict[str, Any]:
    """What to tell from_pretrained about labels: nothing where the model's own fit."""
    if labels is None:
        return {}
    own = [str(settings.id2label[index]) for index in sorted(settings.id2label)]
    if len(own) == len(labels) and not _named(labels):
        return {}
    folded_own, folded = [name.lower() for name in own], [name.lower() for name in labels]
    if folded_own == folded:
        return {}
    if sorted(folded_own) == sorted(folded):
        raise ModelError(
            f"model {path!r} orders its labels {own} and the data {labels}; "
            f"write data.labels in the model's order"
        )
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: index for index, name in enumerate(labels)},
        "ignore_mismatched_sizes": True,
    }


def _named(labels: list[str]) -> bool:
    return not all(name.lstrip("-").isdigit() for name in labels)


def _fingerprint(source: Source, settings: Any) -> str:
    if source.path is not None:
        return fingerprint_folder(source.path)
    commit = getattr(settings, "_commit_hash", None) or "unknown"
    return f"{source.location}@{commit}"


def weights_hash(model: nn.Module) -> str:
    """Hash of every parameter and buffer: equal models, equal digits."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
