"""Heads of models: which of a model's classes the data's labels mean, and what a new head gives."""

from __future__ import annotations

from transformers import PreTrainedConfig

from hfcompress.errors import ModelError
from hfcompress.models.labels import (
    Alignment,
    align_labels,
    are_default_names,
    label_names,
    numbers_of,
    unlike_labels,
)
from hfcompress.models.outputs import PROBLEM_OF_KIND, OutputKind, output_kind


def align_head(
    settings: PreTrainedConfig,
    labels: list[str] | None,
    name: str,
    new_head: bool,
    kind: OutputKind,
) -> Alignment | None:
    """Which classes of a model the data's labels mean; None where it gets a new head.

    Raises:
        ModelError: the labels do not correspond, and no step trains a new head.
    """
    if labels is None:
        return None
    own = label_names(settings)
    if kind == "pixels":
        return _align_masks(settings, labels, own, name, new_head)
    if new_head and not _answers(settings, kind):
        return None
    if kind in ("regression", "ranking"):  # numbers have no names that could differ
        same = len(own) == len(labels)
        return Alignment(tuple(range(len(own))), tuple(own)) if same or not new_head else None
    found = align_labels(labels, own, new_head)
    if found is None and not new_head:
        raise ModelError(unlike_labels(labels, own, f"model {name!r}"))
    return found


def _align_masks(
    settings: PreTrainedConfig, labels: list[str], own: list[str], name: str, new_head: bool
) -> Alignment | None:
    """As `align_head`, where the data are masks of class numbers: without names of classes the
    model's own head is kept.

    Raises:
        ModelError: names in another order than the model's, or other names and no new head.
    """
    heads = [str(head) for head in settings.architectures or ()]
    if not any(head.endswith("ForSemanticSegmentation") for head in heads):
        return None
    if are_default_names(labels):
        return Alignment(tuple(range(len(own))), tuple(own))
    found = align_labels(labels, own, new_head)
    if found is None and not new_head:
        raise ModelError(unlike_labels(labels, own, f"model {name!r}"))
    if found is not None and found.places != tuple(range(len(labels))):
        raise ModelError(
            f"data.labels are {', '.join(labels)} and model {name!r} has {', '.join(own)}; masks "
            f"hold class numbers, so name them in the model's order"
        )
    return found


def _answers(settings: PreTrainedConfig, kind: OutputKind) -> bool:
    """Whether a head of classes, labels or numbers may be what is asked for."""
    if kind not in PROBLEM_OF_KIND:
        return True
    own = output_kind(settings.problem_type, settings.num_labels or 0)
    return own == kind or (settings.problem_type is None and settings.num_labels == 1)


def head_options(
    settings: PreTrainedConfig,
    labels: list[str] | None,
    alignment: Alignment | None,
    kind: OutputKind,
) -> dict[str, object]:
    """Options of from_pretrained: a new head's labels, or names for labels without one."""
    if kind == "spans":  # a head for first and last token, whatever the checkpoint's own is for
        return {} if settings.num_labels == 2 else {"num_labels": 2}
    if labels is None:
        return {}
    if alignment is not None:
        own = label_names(settings)
        if (
            kind in ("regression", "ranking")
            or not are_default_names(own)
            or numbers_of(alignment.names) == list(range(len(own)))
        ):
            return {}
        labels = list(alignment.names)
    options: dict[str, object] = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {name: index for index, name in enumerate(labels)},
        "ignore_mismatched_sizes": True,
    }
    if kind == "ranking":
        options["problem_type"] = PROBLEM_OF_KIND["multi_label"]
    elif alignment is None and (settings.problem_type is not None or kind != "classification"):
        options["problem_type"] = PROBLEM_OF_KIND.get(kind, settings.problem_type)
    return options
