"""The ``distill`` step: a student, a teacher, and `DistillationTrainer`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from hfcompress.data.encode import Encoded, text_limit
from hfcompress.data.image_processors import check_same_images, like_teacher
from hfcompress.distillation.arguments import DistillationArguments
from hfcompress.distillation.cache import TeacherCache
from hfcompress.distillation.layer_map import uniform_layer_map
from hfcompress.distillation.student import check_sizes, choose_layers, make_student
from hfcompress.distillation.teacher_outputs import QUERY
from hfcompress.distillation.text_student import make_text_student
from hfcompress.distillation.trainer import DistillationTrainer
from hfcompress.distillation.weight_folding import Batch
from hfcompress.errors import ConfigError, ModelError, OutputError, first_line
from hfcompress.inference import Logits, logits_in, without_labels
from hfcompress.measure.size import count_parameters
from hfcompress.models.architectures import blocks
from hfcompress.models.labels import label_names
from hfcompress.models.loading import load_model
from hfcompress.models.outputs import BY_TOKEN
from hfcompress.recipes.step_configs import DistillConfig
from hfcompress.steps.context import Context, ModelState, StepReport
from hfcompress.steps.training import (
    check_training,
    computes_in_fp32,
    fast_attention,
    set_up,
    train_with,
    trainer_arguments,
    training_rows,
)
from hfcompress.tasks.task import Task
from hfcompress.training.outputs import infer_task

Model = PreTrainedModel
# Rows whose teacher logits a report shows at several temperatures.
_SHOWN = 4


def distill_step(
    state: ModelState, config: DistillConfig, context: Context
) -> tuple[ModelState, StepReport]:
    """Make a student and train it on what the dense model says of the training rows.

    Returns:
        The state with the student, and a report of the updates, the loss, the teacher's layers
        that the student started from, the teacher's size, and its logits of some measured rows.

    Raises:
        ConfigError: sizes that the teacher cannot give.
        ModelError: a student whose tokenizer or labels are not the teacher's.
        DataError: no training rows.
    """
    teacher = context.dense_model()
    precision = config.distillation.teacher_precision
    if precision == "bf16" and computes_in_fp32(context):
        asked = config.distillation.replace(teacher_precision="fp32")
        config = config.replace(bf16=False, distillation=asked)  # so that it is said once
    rows = training_rows(config, context)
    context.progress.stage(f"distilling on {len(rows):,} rows")
    student, layers = _student(state, teacher, config, context)
    options = config.distillation.to_dict()
    if layers is not None and options["layer_map"] is None and config.distillation.compares_layers:
        options["layer_map"] = dict(enumerate(layers))
    follows: PreTrainedModel | TeacherCache = teacher
    if config.cache:
        follows, rows = _cached(student, teacher, rows, options, config, context)
    if config.distillation.compares_passages:
        assert rows.groups is not None  # `check_distill` refuses other tasks
        rows = replace(rows, rows=rows.rows.add_column(QUERY, rows.groups))

    def build(**common: Any) -> DistillationTrainer:
        epochs = 1.0 if config.augmentation else config.epochs
        arguments = trainer_arguments(
            DistillationArguments, config, context, rows, num_train_epochs=epochs, **options
        )
        return DistillationTrainer(args=arguments, teacher=follows, **common)

    device = context.device
    with set_up(student, config, device), fast_attention(teacher, device):
        done, _ = train_with(build, student, context, rows)
    report = StepReport(details=done).with_details(
        teacher_layers=layers,
        teacher_parameters=count_parameters(teacher),
        # What is kept of a masked token or of an image are numbers, and no logits to draw.
        teacher_logits=[]
        if context.examples.kind in ("masked", "pixels")
        else teacher_logits(teacher, context.eval),
    )
    return state.after(config, report, student), report


def _student(
    state: ModelState, teacher: Model, config: DistillConfig, context: Context
) -> tuple[Model, list[int] | None]:
    """The student, and the teacher's layer behind each of its layers where there is one."""
    if config.student is not None:
        return _made(teacher, config, context)
    if config.text_student is not None:
        return make_text_student(teacher, config.text_student), None
    if config.model is not None:
        return _own(config, context, state.task), None
    return state.network, None


def _made(teacher: Model, config: DistillConfig, context: Context) -> tuple[Model, list[int]]:
    sizes = config.student
    assert sizes is not None
    calibration: list[Batch] | None = None
    if sizes.calibration_rows is not None:
        calibration = list(context.calibration(sizes.calibration_rows, context.seed).batches)
    layers = choose_layers(teacher, sizes.layers, sizes.init, calibration)
    student = make_student(
        teacher,
        layers=layers,
        hidden=sizes.hidden,
        heads=sizes.heads,
        ffn=sizes.ffn,
        calibration=calibration,
    )
    return student, list(layers)


def _longest_row(context: Context) -> int:
    """The tokens of the longest row; 0 for images."""
    sides = (side.lengths for side in (context.train, context.eval) if side is not None)
    return max((int(lengths.max()) for lengths in sides if lengths is not None), default=0)


def _own(config: DistillConfig, context: Context, task: Task) -> Model:
    """A model by name; it must read what the teacher's tokenizer writes.

    Raises:
        ModelError: it has another tokenizer.
    """
    assert config.model is not None
    examples = context.examples
    wanted = config.model
    if examples.modality == "image" and wanted.config is not None:
        wanted = like_teacher(wanted, context.processor)
    loaded = load_model(wanted, task, examples.labels, context.seed, kind=examples.kind)
    if loaded.alignment is not None and not loaded.alignment.is_identity:
        raise ModelError(
            f"the student {wanted.name!r} has the labels "
            f"{', '.join(label_names(loaded.model.config))} and the teacher "
            f"{', '.join(examples.labels)}; give both the same labels in the same order"
        )
    limit, longest = text_limit(None, loaded.model), _longest_row(context)
    if limit is not None and limit < longest:
        raise ModelError(
            f"the student {wanted.name!r} reads at most {limit} tokens and the longest row has "
            f"{longest}; set data.max_length: {limit}"
        )
    mine, theirs = loaded.processor, context.processor
    if examples.modality == "image":
        check_same_images(config.model.name, mine, theirs)
    if hasattr(mine, "get_vocab") and mine.get_vocab() != theirs.get_vocab():
        raise ModelError(
            f"the student {config.model.name!r} has another tokenizer than the teacher, and the "
            f"rows are encoded once; give a student of the same vocabulary"
        )
    return loaded.model


def _cached(
    student: Model,
    teacher: Model,
    rows: Encoded,
    options: dict[str, Any],
    config: DistillConfig,
    context: Context,
) -> tuple[TeacherCache | PreTrainedModel, Encoded]:
    """What the teacher says of all rows, and the rows with their numbers; teacher and rows where
    it cannot be kept."""
    hidden: list[int] = []
    if config.distillation.hidden_weight:
        own, other = len(blocks(student)), len(blocks(teacher))
        hidden = list((options["layer_map"] or uniform_layer_map(own, other)).values())
    processor = context.processor
    try:
        with fast_attention(teacher, context.device):
            cache = TeacherCache.build(
                teacher,
                rows.rows,
                rows.collate,
                hidden_layers=hidden,
                precision=config.distillation.teacher_precision,
                preprocessing=processor.to_json_string()
                if context.examples.modality == "image"
                else "",
                progress=context.progress.work,
                damaged=context.progress.note,
            )
    except (OSError, OutputError) as error:
        context.progress.note(
            f"the teacher's answers cannot be kept ({first_line(error)}), it is asked in each epoch"
        )
        return teacher, rows
    collate = TeacherCache.collator(rows.collate)
    return cache, replace(rows, rows=cache.attach(rows.rows), collate=collate)


@torch.inference_mode()
def teacher_logits(teacher: Model, rows: Encoded) -> list[list[float]]:
    """The teacher's logits of the first measured rows or words, for a picture of temperatures."""
    teacher.eval()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    batch = rows.collate([rows.rows[index] for index in range(min(_SHOWN, len(rows)))])
    inputs = {name: value.to(teacher.device) for name, value in without_labels(batch).items()}
    logits: Logits = logits_in(teacher(**inputs)).float().cpu().numpy()
    if rows.counted is not None:
        logits = rows.counted(logits, batch)
    shown: list[list[float]] = logits[:_SHOWN].tolist()
    return shown


def check_distill(model: Model, config: DistillConfig) -> None:
    """Refuse what does not fit the model, before anything runs.

    Raises:
        ConfigError: sizes that the teacher cannot give, or options of another kind of student.
    """
    check_training(model, config)
    sizes = config.student
    if sizes is not None:
        check_sizes(
            model, layers=sizes.layers, hidden=sizes.hidden, heads=sizes.heads, ffn=sizes.ffn
        )
    options = config.distillation
    if options.compares_passages and infer_task(model) != "ranking":
        raise ConfigError(
            "margin_weight and listwise_weight compare the passages of a query (task: "
            "text-ranking); set them to 0"
        )
    if config.text_student is not None and infer_task(model) in BY_TOKEN:
        raise ConfigError(
            f"a text_student gives one row of logits for a text, and {type(model).__name__} one "
            f"for each token; write student (layers, hidden, ffn) instead"
        )
    if config.text_student is not None and options.compares_layers:
        raise ConfigError(
            "a text_student has no layers to compare with the teacher's; set hidden_weight, "
            "attention_weight and value_weight to 0"
        )
    if config.cache and config.image_augmentation is not None:
        raise ConfigError(
            "a cache keeps what the teacher says of each image as it is; leave image_augmentation "
            "out, or set cache to false"
        )
    if config.cache and (options.attention_weight or options.value_weight):
        raise ConfigError(
            "a cache keeps logits and hidden states; set attention_weight and value_weight to 0, "
            "or cache to false"
        )
