"""Rerankers, sentence-transformers' CrossEncoder: a classifier of pairs whose one logit is a score.

Their files are those of ``AutoModelForSequenceClassification``. What makes a score of the logit is
in ``config.json`` (``sentence_transformers``: ``activation_fn``), where CrossEncoder reads it since
version 4; folders of version 6 have it in a file of their own, which loading copies there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from transformers import AutoModelForSequenceClassification

from hfcompress.errors import ModelError
from hfcompress.models.embedding_layout import MODULES, SETTINGS, TRANSFORMER, read_json
from hfcompress.models.modeling_embedding import layout_folder

ScoreActivation = Literal["sigmoid", "identity"]
FIELD, FORMER_FIELD = "sentence_transformers", "sbert_ce_default_activation_function"
"""Fields of ``config.json`` that name the activation."""
_ACTIVATIONS: dict[str, ScoreActivation] = {
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.linear.Identity": "identity",
}
_PROBLEM = "multi_label_classification"
"""A single logit that is the log-odds of "relevant" is trained as this."""


def is_cross_encoder(config: object) -> bool:
    """Return whether a config says that its one logit is the score of a pair.

    Args:
        config: of transformers, or ``config.json`` as a mapping.
    """
    return _activation_name(config) is not None and _logits_of(config) == 1


def _activation_name(config: object) -> object:
    """Return the name of the function that makes a score of the logit; None without one."""
    says = _field(config, FIELD)
    name = says.get("activation_fn") if isinstance(says, Mapping) else None
    return name or _field(config, FORMER_FIELD)


def _field(config: object, name: str) -> object:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _logits_of(config: object) -> object:
    if isinstance(config, Mapping):
        return len(config.get("id2label") or ("", ""))
    return getattr(config, "num_labels", None)


def score_activation(config: object, where: str) -> ScoreActivation:
    """Return what makes a score of the logit; CrossEncoder's sigmoid where the config says nothing.

    Args:
        config: as in `is_cross_encoder`.
        where: the model's name, for the message.

    Raises:
        ModelError: another function.
    """
    return _known(_activation_name(config), where)


def _known(name: object, where: str) -> ScoreActivation:
    if name is None:
        return "sigmoid"
    if name not in _ACTIVATIONS:
        raise ModelError(
            f"model {where!r} makes scores with {name}; supported are {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[str(name)]


def is_cross_encoder_folder(folder: Path) -> bool:
    """Return whether a folder's own files say that CrossEncoder saved it."""
    if not (folder / MODULES).is_file():
        return False
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    return str(settings.get("model_type")) == "CrossEncoder"


def _checked_settings(folder: Path, where: str) -> dict[str, Any]:
    """Return what a CrossEncoder folder says beside the files of transformers.

    Raises:
        ModelError: modules behind the classifier, a prompt, or texts that are changed before the
            tokenizer reads them.
    """
    if not is_cross_encoder_folder(folder):
        return {}
    settings = read_json(folder / SETTINGS)
    kinds = [str(item.get("type", "")).rpartition(".")[2] for item in read_json(folder / MODULES)]
    if kinds != ["Transformer"]:
        raise ModelError(
            f"{MODULES} of model {where!r} lists {', '.join(kinds)}; a reranker is one Transformer "
            f"with a classification head"
        )
    own = read_json(folder / TRANSFORMER) if (folder / TRANSFORMER).is_file() else {}
    task = own.get("transformer_task", "sequence-classification")
    if task != "sequence-classification" or own.get("processing_kwargs"):
        raise ModelError(
            f"{folder / TRANSFORMER} has the transformer_task {task} or processing_kwargs, which "
            f"are not supported; give a reranker with a classification head"
        )
    prompt = (settings.get("prompts") or {}).get(str(settings.get("default_prompt_name")))
    if prompt:
        raise ModelError(
            f"model {where!r} puts {prompt!r} before every query; write it into the data, and set "
            f"default_prompt_name to null in {SETTINGS}"
        )
    return cast(dict[str, Any], settings)


class AutoCrossEncoder:
    """Loads rerankers, as the Auto classes of transformers load others."""

    @classmethod
    def from_pretrained(cls, location: str | Path, **options: Any) -> Any:
        """Return the classifier of a CrossEncoder's folder or hub name, or of any encoder.

        Args:
            location: with the classifier's files.
            options: of ``from_pretrained``.

        Returns:
            the model in eval mode, whose config says what makes a score of its logit; with
            ``output_loading_info`` also what was missing.

        Raises:
            ModelError: another activation than a sigmoid or none, or what follows the classifier.
        """
        folder = layout_folder(location, options.get("revision"))
        settings = _checked_settings(folder, str(location))
        loaded = AutoModelForSequenceClassification.from_pretrained(location, **options)  # nosec B615 # in options
        config = (loaded[0] if isinstance(loaded, tuple) else loaded).config
        if config.num_labels == 1:
            name = settings.get("activation_fn") or _activation_name(config)
            name = name or next(iter(_ACTIVATIONS))
            _known(name, str(location))
            own = getattr(config, FIELD, None) or {}
            setattr(config, FIELD, {**own, "activation_fn": name})
            config.problem_type = config.problem_type or _PROBLEM
        return loaded
