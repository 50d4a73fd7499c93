"""Checks of arguments, data, tokenizers and teachers before a student trains."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Sized

from datasets import ClassLabel, LargeList, List, Value
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainingArguments

from hfcompress.distillation.config import TeacherTermsConfig
from hfcompress.distillation.teacher_outputs import TEACHER_PREFIX
from hfcompress.distillation.teachers import TeacherLike
from hfcompress.errors import ConfigError, DataError, ModelError
from hfcompress.models.labels import label_key
from hfcompress.models.outputs import BY_TOKEN
from hfcompress.training.outputs import infer_task


def check_setup(args: TrainingArguments, config: TeacherTermsConfig, dataset: object) -> None:
    """Refuse an empty dataset, and setups in which hooks cannot read the layers.

    Raises:
        DataError: no rows.
        ConfigError: layers are compared, and the student is sharded or replicated in one process.
    """
    if isinstance(dataset, Sized) and len(dataset) == 0:
        raise DataError("the train dataset is empty; distillation needs at least one row")
    if config.compares_layers and (args.deepspeed or args.fsdp or args.n_gpu > 1):
        raise ConfigError(
            "comparing layers needs the whole student in each process; remove deepspeed and fsdp, "
            "and start one process per GPU (accelerate launch)"
        )


def check_labels(student: nn.Module, dataset: object, columns: Collection[str]) -> None:
    """Refuse a dataset whose labels are words, or class numbers in another order than the model's.

    Args:
        student: the model that trains.
        dataset: its rows; only a `datasets.Dataset` says what its numbers mean.
        columns: that hold labels.

    Raises:
        DataError: labels that are words.
        ModelError: the model's class names in another order.
    """
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        return
    for column in (name for name in columns if name in features):
        kind = features[column]
        if isinstance(kind, Value) and kind.dtype in ("string", "large_string"):
            raise DataError(
                f"the column {column!r} holds words; map them to the model's class numbers "
                "(config.label2id), or give the texts to train_with_distillation"
            )
        named = kind.feature if isinstance(kind, (List, LargeList)) else kind
        own = _label_names(student)
        if isinstance(named, ClassLabel) and own is not None:
            _check_order(named.names, own)


def _check_order(names: Sequence[str], own: Sequence[str]) -> None:
    key = label_key(names, own)
    mine, theirs = [key(name) for name in names], [key(name) for name in own]
    if set(mine) <= set(theirs) and mine != theirs[: len(mine)]:
        raise ModelError(
            f"the data's classes are {', '.join(names)} and the student's {', '.join(own)}; give "
            "both in the same order (Dataset.align_labels_with_mapping(config.label2id, column))"
        )


def check_tokenizers(
    student: nn.Module,
    teachers: Sequence[TeacherLike],
    config: TeacherTermsConfig,
    tokenizers: tuple[object, object],
    columns: Collection[str],
) -> None:
    """Refuse a teacher with another tokenizer unless it has its own columns in the data.

    Args:
        student: the model that trains.
        teachers: all of them.
        config: says whether layers are compared.
        tokenizers: the student's and the teacher's; None if unknown.
        columns: of the train dataset.

    Raises:
        ModelError: layers or tokens are compared one by one, and the tokens differ; or
            vocabularies of other sizes.
        DataError: a teacher has another tokenizer, and the rows have no columns for it.
    """
    mine, theirs = tokenizers
    models = [teacher for teacher in teachers if isinstance(teacher, nn.Module)]
    own_columns = any(name.startswith(TEACHER_PREFIX) for name in columns)
    by_token = config.compares_layers or (config.task or infer_task(student)) in BY_TOKEN
    if not (
        isinstance(mine, PreTrainedTokenizerBase) and isinstance(theirs, PreTrainedTokenizerBase)
    ):
        if config.compares_layers or "input_ids" in columns:
            _check_vocabulary_sizes(student, models, by_token, own_columns)
        return
    if mine.get_vocab() == theirs.get_vocab():
        return
    if by_token:
        raise ModelError(
            f"the student's tokenizer ({len(mine)} tokens) and the teacher's ({len(theirs)}) "
            f"differ, so {_BY_TOKEN}"
        )
    if models and not own_columns:
        raise DataError(
            "the teacher's tokenizer differs from the student's; add the columns teacher_input_ids "
            "and teacher_attention_mask to the rows, or give a TeacherCache as the teacher"
        )


_BY_TOKEN = (
    "their layers or logits cannot be compared token by token; set hidden_weight, "
    "attention_weight and value_weight to 0, or take a teacher with the student's tokenizer"
)


def _check_vocabulary_sizes(
    student: nn.Module, models: Sequence[nn.Module], by_token: bool, own_columns: bool
) -> None:
    sizes = [
        getattr(getattr(model, "config", None), "vocab_size", None) for model in (student, *models)
    ]
    for size in sizes[1:]:
        if None in (sizes[0], size) or size == sizes[0]:
            continue
        found = f"student and teacher have vocabularies of {sizes[0]} and {size} tokens, so "
        if by_token:
            raise ModelError(f"{found}{_BY_TOKEN}; or give both tokenizers if they are equal")
        if not own_columns:
            raise ModelError(
                f"{found}the teacher would read other words; add the columns teacher_input_ids and "
                "teacher_attention_mask to the rows, or give both tokenizers if they are equal"
            )


def check_teacher(student: nn.Module, teacher: TeacherLike) -> None:
    """Refuse a teacher with other classes than the student, or with shared weights.

    Raises:
        ModelError: other labels, or shared weights.
    """
    if not isinstance(teacher, nn.Module):
        return
    _check_labels(student, teacher)
    mine, theirs = (
        {p.data_ptr() for p in model.parameters() if p.data_ptr()} for model in (student, teacher)
    )
    if mine & theirs:
        raise ModelError(
            "student and teacher share weights, so training would change the teacher; copy one of "
            "them (copy.deepcopy)"
        )


def _check_labels(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher with other classes, or in another order, than the student.

    Placeholder names (``LABEL_0``) match any names of the same number.

    Raises:
        ModelError: the classes differ.
    """
    names = [_label_names(model) for model in (student, teacher)]
    if None in names:
        return
    mine, theirs = names
    assert mine is not None
    assert theirs is not None
    placeholders = any(item == [f"LABEL_{n}" for n in range(len(item))] for item in (mine, theirs))
    if len(mine) != len(theirs) or (mine != theirs and not placeholders):
        raise ModelError(
            f"the student's labels are {', '.join(mine)} and the teacher's {', '.join(theirs)}; "
            "give both the same labels in the same order (id2label)"
        )


def _label_names(model: nn.Module) -> list[str] | None:
    names = getattr(getattr(model, "config", None), "id2label", None)
    return [str(names[key]) for key in sorted(names, key=int)] if names else None
