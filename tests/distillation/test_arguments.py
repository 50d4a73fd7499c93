from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Value
from torch.utils.data import IterableDataset
from transformers import HfArgumentParser, TrainingArguments

from hfcompress.distillation.arguments import DistillationArguments
from hfcompress.distillation.config import DistillationTrainingConfig
from hfcompress.distillation.schedule import value_at
from hfcompress.distillation.trainer import DistillationTrainer
from hfcompress.errors import ConfigError, DataError, ModelError
from tests.distillation.training import arguments, distill
from tests.tiny_models import sharp_bert, text_rows, token_bert, token_rows
from tests.tiny_tokenizers import tiny_tokenizer


def test_the_arguments_are_the_fields_of_the_config_with_help() -> None:
    own = {f.name for f in fields(DistillationArguments)} - {
        f.name for f in fields(TrainingArguments)
    }
    assert own == set(DistillationTrainingConfig.model_fields)
    for item in fields(DistillationArguments):
        if item.name in own:
            field = DistillationTrainingConfig.model_fields[item.name]
            assert item.metadata["help"] == field.description
            assert item.default == field.default


def test_the_arguments_parse_from_a_command_line(tmp_path: Path) -> None:
    parser = HfArgumentParser(DistillationArguments)  # type: ignore[arg-type]
    line = ["--output_dir", str(tmp_path), "--use_cpu", "--alpha", "0.7", "--hidden_weight", "1"]
    line += ["--layer_map", '{"0": 1, "1": 3}', "--teacher_weights", "2", "1"]
    (args,) = parser.parse_args_into_dataclasses(line)
    config = args.distillation_config()
    assert (config.alpha, config.layer_map) == (0.7, {0: 1, 1: 3})
    assert config.teacher_weights == (2.0, 1.0)
    assert "divides the logits of both" in parser.format_help()


@pytest.mark.parametrize(
    ("given", "message"),
    [({"temperature": 0.0}, r"DistillationArguments\.temperature should be greater than 0, not 0"),
     ({"temperature": -2.0}, "temperature should be greater than 0"),
     ({"alpha": 1.5}, r"DistillationArguments\.alpha should be less than or equal to 1, not 1\.5"),
     ({"alpha": -0.5}, "alpha should be greater than or equal to 0"),
     ({"hidden_weight": -1.0}, "hidden_weight should be greater than or equal to 0"),
     ({"hidden_distance": "l1"}, "hidden_distance should be 'mse'"),
     ({"schedule": "linear"}, "schedule linear has no effect; set temperature_end or alpha_end"),
     ({"alpha_end": 1.0}, "alpha_end has no effect; set schedule to linear or cosine"),
     ({"alpha_end": 2.0, "schedule": "linear"}, "alpha_end should be less than or equal to 1"),
     ({"temperature_end": 0.0, "schedule": "linear"}, "temperature_end should be greater than 0"),
     ({"teacher_weights": [1.0, 0.0]}, "teacher_weights must be above 0"),
     ({"relation_heads": 0}, "relation_heads should be greater than or equal to 1"),
     ({"layer_map": "0-1"}, "cannot parse layer_map"),
     ({"task": "tagging"}, "task should be 'classification'")],
)  # fmt: skip
def test_bad_arguments_are_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        DistillationArguments(**arguments(tmp_path, **given))
    assert "\n" not in str(error.value)


def test_a_schedule_goes_from_the_start_to_the_end() -> None:
    linear = [value_at("linear", 4.0, 1.0, step, 4) for step in range(4)]
    assert linear == pytest.approx([4.0, 3.0, 2.0, 1.0])
    cosine = [value_at("cosine", 0.0, 1.0, step, 5) for step in range(5)]
    assert cosine == pytest.approx([0.0, 0.1464466, 0.5, 0.8535534, 1.0])
    assert value_at("constant", 4.0, None, 3, 4) == 4.0
    assert value_at("linear", 4.0, 1.0, 9, 4) == 1.0
    assert value_at("linear", 4.0, 1.0, 0, 1) == 4.0


def test_plain_training_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs DistillationArguments, not TrainingArguments"):
        DistillationTrainer(
            model=sharp_bert(0), args=TrainingArguments(**arguments(tmp_path)),  # type: ignore[arg-type]
            teacher=sharp_bert(1), train_dataset=text_rows(),
        )  # fmt: skip


def other_tokenizer() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["otherwise"])
    return tokenizer


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [(DataError, "train dataset is empty", {"data": []}),
     (ModelError, "labels are a, b and the teacher's b, a", {
         "student": lambda: sharp_bert(0, id2label={0: "a", 1: "b"}),
         "teacher": lambda: sharp_bert(1, id2label={0: "b", 1: "a"})}),
     (ConfigError, "the teacher has 2 layers, 0 to 1", {"hidden_weight": 1.0,
                                                        "layer_map": {0: 2}}),
     (ConfigError, "3 teacher_weights for 2 teachers", {
         "teacher": lambda: [sharp_bert(1), sharp_bert(2)], "teacher_weights": [1.0, 1.0, 1.0]}),
     (DataError, "the rows have no labels; set alpha to 1", {
         "data": [{"input_ids": torch.tensor([1, 2])}] * 8}),
     (DataError, "no column 'row' to look up kept outputs", {"teacher": lambda: Kept()})],
)  # fmt: skip
def test_what_cannot_be_distilled_is_refused(
    error: type[Exception], message: str, change: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("student", "teacher"):
        if name in change:
            change = {**change, name: change[name]()}
    with pytest.raises(error, match=message) as raised:
        distill(tmp_path, **change)
    assert "\n" not in str(raised.value)


class Kept:
    def lookup(self, rows: torch.Tensor) -> Any:
        raise AssertionError("not asked")


@pytest.mark.parametrize("layers", [False, True])
def test_tokenizers_that_differ_are_refused(tmp_path: Path, layers: bool) -> None:
    given: dict[str, Any] = {"hidden_weight": 1.0} if layers else {}
    other = {"processing_class": tiny_tokenizer(), "teacher_processing_class": other_tokenizer()}
    error = ModelError if layers else DataError
    message = (
        r"student's tokenizer \(25 tokens\) and the teacher's \(26\) differ"
        if layers
        else "add the columns teacher_input_ids"
    )
    with pytest.raises(error, match=message):
        distill(tmp_path, options=other, **given)
    same = {"processing_class": tiny_tokenizer(), "teacher_processing_class": tiny_tokenizer()}
    distill(tmp_path, options=same, max_steps=1, **given)


def test_vocabularies_of_other_sizes_are_refused(tmp_path: Path) -> None:
    teacher = sharp_bert(1)
    teacher.resize_token_embeddings(60)
    with pytest.raises(ModelError, match="vocabularies of 50 and 60 tokens, so their layers"):
        distill(tmp_path, teacher=teacher, hidden_weight=1.0)
    with pytest.raises(ModelError, match="the teacher would read other words; add the columns"):
        distill(tmp_path, teacher=teacher)
    own = [{**row, **{f"teacher_{name}": row[name] for name in row}} for row in text_rows()]
    distill(tmp_path, teacher=teacher, data=own, max_steps=1)
    same = {"processing_class": tiny_tokenizer(), "teacher_processing_class": tiny_tokenizer()}
    distill(tmp_path, teacher=teacher, options=same, max_steps=1)


def test_a_stream_of_other_words_is_refused_at_its_first_batch(tmp_path: Path) -> None:
    teacher = sharp_bert(1)
    teacher.resize_token_embeddings(60)

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield from text_rows()

    with pytest.raises(ModelError, match="vocabularies of 50 and 60 tokens"):
        distill(tmp_path, teacher=teacher, data=Stream())


def test_tokens_of_two_tokenizers_are_never_compared_one_by_one(tmp_path: Path) -> None:
    other = {"processing_class": tiny_tokenizer(), "teacher_processing_class": other_tokenizer()}
    with pytest.raises(ModelError, match="cannot be compared token by token"):
        distill(tmp_path, token_bert(0), token_bert(1), token_rows(), options=other)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (ClassLabel(names=["b", "a"]), ModelError, "classes are b, a and the student's a, b"),
        (Value("string"), DataError, "the column 'labels' holds words"),
        (ClassLabel(names=["A", "b"]), None, ""),
        (ClassLabel(names=["good", "bad"]), None, ""),
    ],
)
def test_named_labels_are_in_the_students_order(
    kind: Any, error: Any, message: str, tmp_path: Path
) -> None:
    names = {0: "a", 1: "b"}
    words = isinstance(kind, Value)
    rows = [
        {**{name: value.tolist() for name, value in row.items()}, "labels": int(row["labels"])}
        for row in text_rows()
    ]
    data = Dataset.from_list(
        [{**row, "labels": names[row["labels"]] if words else row["labels"]} for row in rows]
    ).cast_column("labels", kind)
    student, teacher = (sharp_bert(seed, id2label=names) for seed in (0, 1))
    if error is None:
        distill(tmp_path, student, teacher, data, max_steps=1)
        return
    with pytest.raises(error, match=message):
        distill(tmp_path, student, teacher, data)


def test_layers_need_the_whole_student_in_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda args: 2))
    monkeypatch.setattr(TrainingArguments, "place_model_on_device", False, raising=False)
    with pytest.raises(ConfigError, match="comparing layers needs the whole student"):
        distill(tmp_path, hidden_weight=1.0)
