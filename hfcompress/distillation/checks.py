"""What is refused before a student trains."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, TrainingArguments

from hfcompress.distillation.config import TeacherTermsConfig
from hfcompress.distillation.teacher_outputs import TEACHER_PREFIX
from hfcompress.distillation.teachers import TeacherLike
from hfcompress.errors import ConfigError, DataError, ModelError


def check_setup(args: TrainingArguments, config: TeacherTermsConfig, dataset: Any) -> None:
    """Refuse an empty dataset, and setups in which layers cannot be read.

    Raises:
        DataError: no rows.
        ConfigError: layers are compared, and the student is cut up or copied.
    """
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        raise DataError("the train dataset is empty; distillation needs at least one row")
    if config.compares_layers and (args.deepspeed or args.fsdp or args.n_gpu > 1):
        raise ConfigError(
            "comparing layers needs the whole student in each process; leave deepspeed and fsdp "
            "out, and start one process for each GPU (accelerate launch)"
        )


def check_tokenizers(
    student: nn.Module,
    teachers: Sequence[TeacherLike],
    config: TeacherTermsConfig,
    tokenizers: tuple[Any, Any],
    columns: Collection[str],
) -> None:
    """Refuse a teacher that reads other tokens than those it would be shown or compared on.

    Args:
        student: the model that trains.
        teachers: all of them.
        config: whether layers are compared.
        tokenizers: the student's and the teacher's, where they are known.
        columns: of the train dataset.

    Raises:
        ModelError: layers are compared token by token, and the tokens differ.
        DataError: a teacher has another tokenizer, and the rows hold nothing for it.
    """
    mine, theirs = tokenizers
    models = [teacher for teacher in teachers if isinstance(teacher, nn.Module)]
    known = isinstance(mine, PreTrainedTokenizerBase) and isinstance(
        theirs, PreTrainedTokenizerBase
    )
    if not known:
        if config.compares_layers:
            _check_vocabulary_sizes(student, models)
        return
    if mine.get_vocab() == theirs.get_vocab():
        return
    if config.compares_layers:
        raise ModelError(
            f"the student's tokenizer ({len(mine)} tokens) and the teacher's ({len(theirs)}) "
            "differ, so their layers cannot be compared token by token; set hidden_weight, "
            "attention_weight and value_weight to 0"
        )
    if models and not any(name.startswith(TEACHER_PREFIX) for name in columns):
        raise DataError(
            "the teacher has another tokenizer than the student; add what it reads to the rows as "
            "teacher_input_ids and teacher_attention_mask, or give its kept outputs"
        )


def _check_vocabulary_sizes(student: nn.Module, models: Sequence[nn.Module]) -> None:
    sizes = [
        getattr(getattr(model, "config", None), "vocab_size", None) for model in (student, *models)
    ]
    for size in sizes[1:]:
        if None not in (sizes[0], size) and size != sizes[0]:
            raise ModelError(
                f"student and teacher have vocabularies of {sizes[0]} and {size} tokens, so their "
                "layers cannot be compared token by token; set hidden_weight, attention_weight "
                "and value_weight to 0, or give both tokenizers if they are the same"
            )


def check_teacher(student: nn.Module, teacher: TeacherLike) -> None:
    """Refuse a model whose classes are not the student's, or that training would change.

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
            "the student shares weights with its teacher, which training would change; give a "
            "copy of one (copy.deepcopy)"
        )


def _check_labels(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher whose classes are not the student's, in the student's order.

    Names that a config made up (``LABEL_0``) say nothing and fit all of the same number.

    Raises:
        ModelError: the classes differ.
    """
    names = [_label_names(model) for model in (student, teacher)]
    if None in names:
        return
    mine, theirs = names
    assert mine is not None
    assert theirs is not None
    made_up = any(item == [f"LABEL_{n}" for n in range(len(item))] for item in (mine, theirs))
    if len(mine) != len(theirs) or (mine != theirs and not made_up):
        raise ModelError(
            f"the student's labels are {', '.join(mine)} and the teacher's {', '.join(theirs)}; "
            "give both the same labels in the same order (id2label)"
        )


def _label_names(model: nn.Module) -> list[str] | None:
    names = getattr(getattr(model, "config", None), "id2label", None)
    return [str(names[key]) for key in sorted(names, key=int)] if names else None
