"""``train_with_distillation``: from a student, a teacher and data to a trained student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from hfcompress.data.config import DataConfig
from hfcompress.data.encode import Encoded, encode, text_limit
from hfcompress.data.load import (
    align_encoded,
    examples_of_texts,
    load_examples,
    strict_alignment,
)
from hfcompress.distillation.arguments import DistillationArguments
from hfcompress.distillation.cache import TeacherCache
from hfcompress.distillation.checks import check_labels, check_tokenizers
from hfcompress.distillation.teacher_loss import listed
from hfcompress.distillation.teacher_outputs import (
    QUERY,
    ROW,
    TEACHER_PREFIX,
    student_inputs,
    teacher_inputs,
)
from hfcompress.distillation.teachers import TeacherLike
from hfcompress.distillation.trainer import DistillationTrainer
from hfcompress.errors import ConfigError, DataError
from hfcompress.models.labels import are_default_names, label_names
from hfcompress.tasks.text_ranking import TEXT_RANKING
from hfcompress.training.outputs import LABELS, infer_task

_ENCODED = ("input_ids", "pixel_values")
_NO_CLASSES = ("regression", "multi_label_classification")
_DEFAULTS: dict[str, Any] = {
    "output_dir": "distilled",
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-4,
    "save_strategy": "no",
    "report_to": [],
    "remove_unused_columns": False,
}


def train_with_distillation(
    student: nn.Module,
    teacher: TeacherLike | Sequence[TeacherLike],
    data: str | Path | Dataset,
    processor: Any = None,
    *,
    cache: bool = True,
    max_length: int | None = None,
    teacher_processor: PreTrainedTokenizerBase | None = None,
    **arguments: Any,
) -> DistillationTrainer:
    """Train a student on what a teacher says of the data::

        student = make_student(teacher, layers=3)
        trainer = train_with_distillation(student, teacher, "sst2/train.tsv")
        student.save_pretrained("distilled")

    Args:
        student: trained in place; in evaluation mode at the end.
        teacher: as `DistillationTrainer` takes it.
        data: a file, folder or hub name as a recipe's ``data`` takes it (its measured side becomes
            the Trainer's evaluation data); or a dataset of one or two columns of text and a
            ``label`` (names or numbers, matched with the models'); or one of model inputs. For
            rerankers, queries with passages and their relevance.
        processor: the tokenizer or image processor; by default that of the teacher's checkpoint.
        cache: ask a teacher that is a model once for each row and keep its logits, where no
            layers are compared.
        max_length: longest token sequence, cut beyond; by default 512, or the positions of student
            and teacher if they are fewer.
        teacher_processor: the teacher's tokenizer, if it is not the student's; texts are then
            encoded for each.
        arguments: of `DistillationArguments`; 3 epochs of batches of 32 at a learning rate of
            1e-4 by default.

    Returns:
        The trainer, with its logs and its ``evaluate``.

    Raises:
        ConfigError: an argument out of range, or no processor to be found.
        DataError: data that cannot be read or encoded, or no row.
        ModelError: student, teacher and data whose labels or vocabularies differ.
    """
    args = _arguments(arguments)
    if not isinstance(data, (str, Path, Dataset)):
        raise DataError(
            f"data is a {type(data).__name__}; give a file or a datasets.Dataset with one column "
            "for each of the model's inputs, or call DistillationTrainer with a train_dataset of "
            "dicts and a data_collator"
        )
    tokenizers = (processor, teacher_processor)
    limit = text_limit(max_length, student, *([] if teacher_processor else listed(teacher)))
    train, evaluation = _rows(teacher, student, data, processor, limit, teacher_processor)
    config = args.distillation_config()
    check_labels(student, train.rows, LABELS)
    check_tokenizers(student, listed(teacher), config, tokenizers, train.rows.column_names)
    rows, collate = train.rows, train.collate
    if cache and isinstance(teacher, nn.Module) and not args.distillation_config().compares_layers:
        precision = args.distillation_config().teacher_precision
        teacher = TeacherCache.build(teacher, rows, collate, precision=precision)
        rows, collate = teacher.attach(rows), _numbered(collate)
    trainer = DistillationTrainer(
        model=student,
        args=args,
        teacher=teacher,
        train_dataset=rows,
        eval_dataset=None if evaluation is None else evaluation.rows,
        data_collator=collate,
        teacher_processing_class=teacher_processor,
        processing_class=processor if teacher_processor is not None else None,
    )
    trainer.train()
    student.eval()
    return trainer


def _arguments(given: dict[str, Any]) -> DistillationArguments:
    unknown = set(given) - set(DistillationArguments.__dataclass_fields__)
    if unknown:
        raise ConfigError(f"DistillationArguments has no field {min(unknown)!r}")
    defaults = {**_DEFAULTS, "use_cpu": not torch.accelerator.is_available()}
    return DistillationArguments(**{**defaults, **given})


def _rows(
    teacher: Any,
    student: nn.Module,
    data: str | Path | Dataset,
    processor: Any,
    max_length: int | None,
    teacher_processor: PreTrainedTokenizerBase | None = None,
) -> tuple[Encoded, Encoded | None]:
    """What to train on, and what to evaluate on."""
    own = _label_names(teacher, student)
    if isinstance(data, Dataset) and any(name in data.column_names for name in _ENCODED):
        processor = processor or _processor(teacher, "input_ids" in data.column_names)
        return Encoded(align_encoded(data, own), None, _collator(processor)), None
    if infer_task(student) == "ranking" and isinstance(_model(teacher), nn.Module):
        return _ranked_rows(teacher, data, processor, max_length)
    if isinstance(data, Dataset):
        examples = examples_of_texts(data, own is not None)
    else:
        images = getattr(_model(teacher), "main_input_name", "input_ids") == "pixel_values"
        config = DataConfig(path=str(data))
        examples = load_examples(config, "image" if images else "text", need_train=True)
    if own is not None and examples.labels:
        ordered = not isinstance(data, Dataset) or _has_class_labels(data)
        examples = examples.aligned(strict_alignment(examples.labels, own, ordered))
    processor = processor or _processor(teacher, examples.modality == "text")
    assert examples.train is not None
    train = encode(examples, examples.train, processor, max_length)
    if _differ(processor, teacher_processor):
        assert teacher_processor is not None
        limit = text_limit(512, *listed(teacher))
        theirs = encode(examples, examples.train, teacher_processor, limit)
        train = _with_teacher_columns(train, theirs)
    if isinstance(data, Dataset):
        return train, None
    return train, encode(examples, examples.eval, processor, max_length)


def _ranked_rows(
    teacher: Any, data: str | Path | Dataset, processor: Any, max_length: int | None
) -> tuple[Encoded, Encoded | None]:
    """As `_rows`, of queries and passages; the rows have the number of their query."""
    splits = {"train": data, "validation": data} if isinstance(data, Dataset) else None
    config = DataConfig(path=str(data) if splits is None else "data")
    examples = TEXT_RANKING.load(config, need_train=True, splits=splits)
    processor = processor or _processor(teacher, text=True)
    sides = []
    for rows in (examples.train, examples.eval):
        assert rows is not None
        made = TEXT_RANKING.encode(examples, rows, processor, max_length)
        sides.append(replace(made, rows=made.rows.add_column(QUERY, made.groups)))
    return sides[0], None if splits else sides[1]


def _has_class_labels(rows: Dataset) -> bool:
    return any(isinstance(kind, ClassLabel) for kind in rows.features.values())


def _label_names(teacher: object, student: nn.Module) -> list[str] | None:
    """The names of the models' classes: those of the first model that names them.

    None where no model does, or where the labels are not classes (a number, several labels).
    """
    configs = [getattr(_model(model), "config", None) for model in (teacher, student)]
    if any(getattr(config, "problem_type", None) in _NO_CLASSES for config in configs):
        return None
    found = [label_names(config) for config in configs if isinstance(config, PreTrainedConfig)]
    named = [names for names in found if len(names) > 1 and not are_default_names(names)]
    return next(iter([*named, *(names for names in found if len(names) > 1)]), None)


def _differ(processor: Any, other: PreTrainedTokenizerBase | None) -> bool:
    if other is None or not isinstance(processor, PreTrainedTokenizerBase):
        return False
    return processor.get_vocab() != other.get_vocab()


def _with_teacher_columns(mine: Encoded, theirs: Encoded) -> Encoded:
    """Return the student's rows with the teacher's tokens of the same texts beside them."""
    rows = mine.rows
    for name in theirs.rows.column_names:
        if name not in LABELS:
            rows = rows.add_column(f"{TEACHER_PREFIX}{name}", theirs.rows[name][:])

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = mine.collate([student_inputs(item) for item in items])
        if any(name.startswith(TEACHER_PREFIX) for name in items[0]):
            other = theirs.collate([teacher_inputs(item) for item in items])
            batch |= {f"{TEACHER_PREFIX}{name}": value for name, value in other.items()}
        return batch

    return Encoded(rows, mine.lengths, collate)


def _collator(processor: Any) -> Any:
    if isinstance(processor, PreTrainedTokenizerBase):
        return lambda items: dict(processor.pad(items, return_tensors="pt"))
    return lambda items: {name: torch.stack([torch.as_tensor(item[name]) for item in items])
                          for name in items[0]}  # fmt: skip


def _numbered(collate: Any) -> Any:
    """A collator that takes the rows' numbers along, where they have one: evaluation has none."""
    with_row = TeacherCache.collator(collate)
    return lambda items: with_row(items) if ROW in items[0] else collate(items)


def _model(teacher: Any) -> Any:
    return teacher[0] if isinstance(teacher, (list, tuple)) and teacher else teacher


def _processor(teacher: Any, text: bool) -> Any:
    """The tokenizer or image processor that lies beside the teacher's weights."""
    where = getattr(_model(teacher), "name_or_path", "")
    auto: Any = AutoTokenizer if text else AutoImageProcessor
    if where:
        try:
            return auto.from_pretrained(where, trust_remote_code=False)  # nosec B615 # as loaded
        except (OSError, ValueError):
            pass
    what = "tokenizer" if text else "image processor"
    raise ConfigError(f"no {what} was found beside the teacher's weights; give it as 'processor'")
