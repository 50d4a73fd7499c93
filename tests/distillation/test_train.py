from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, load_dataset
from torch.utils.data import DataLoader, TensorDataset
from transformers import RobertaConfig, RobertaForSequenceClassification

from hfcompress.data.encode import text_limit
from hfcompress.distillation.cache import TeacherCache
from hfcompress.distillation.train import train_with_distillation
from hfcompress.errors import ConfigError, DataError, ModelError
from tests.distillation.training import logged
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

QUIET: dict[str, Any] = {"disable_tqdm": True, "logging_steps": 1, "max_steps": 3}


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def teacher(tmp_path: Path) -> Any:
    """A teacher that was loaded from a folder, with its tokenizer beside it."""
    folder = tmp_path / "teacher"
    tiny_bert(seed=1).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return type(tiny_bert()).from_pretrained(folder)


def test_three_lines_train_a_student(
    teacher: Any, write_data: Callable[..., Path], tmp_path: Path
) -> None:
    student = tiny_bert(seed=0)
    data = write_data(rows=200)
    trainer = train_with_distillation(
        student, teacher, data, max_steps=60, learning_rate=2e-3, alpha=0.3, disable_tqdm=True,
        output_dir=str(tmp_path / "out"), logging_steps=10,
    )  # fmt: skip
    assert not student.training
    before: Any = tiny_bert(seed=0)
    before.to(trainer.args.device)
    trained = trainer.evaluate()["eval_loss"]
    trainer.model = before
    assert trained < 0.8 * trainer.evaluate()["eval_loss"]
    assert not list((tmp_path / "out").iterdir())  # nothing is saved unless asked for


def test_kept_logits_train_as_the_teacher_does(
    teacher: Any, write_data: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data()
    built: list[int] = []
    build = TeacherCache.build.__func__  # type: ignore[attr-defined]

    def spied(cls: Any, *args: Any, **kwargs: Any) -> Any:
        built.append(1)
        return build(cls, *args, **kwargs)

    monkeypatch.setattr(TeacherCache, "build", classmethod(spied))
    kept, live, layers = (
        train_with_distillation(tiny_bert(seed=0), teacher, data, **QUIET, **given)
        for given in ({}, {"cache": False}, {"hidden_weight": 1.0})
    )
    assert len(built) == 1  # layers are not kept
    assert logged(kept, "soft_loss") == pytest.approx(logged(live, "soft_loss"), abs=1e-5)
    assert logged(layers, "hidden_loss")[0] > 0


def test_texts_and_encoded_rows_are_data_too(teacher: Any, write_data: Callable[..., Path]) -> None:
    file = write_data(rows=32)
    texts: Dataset = load_dataset("csv", data_files=str(file), delimiter="\t")["train"]
    tokenizer = tiny_tokenizer()
    encoded = Dataset.from_list(
        [{**tokenizer(row["sentence"]), "labels": row["label"]} for row in texts]
    )
    losses = [
        logged(train_with_distillation(tiny_bert(seed=0), teacher, data, **QUIET))
        for data in (texts, encoded)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    short = train_with_distillation(tiny_bert(seed=0), teacher, texts, max_length=4, **QUIET)
    assert logged(short) != losses[0]


def test_several_teachers_and_functions_are_asked_live(
    teacher: Any, write_data: Callable[..., Path]
) -> None:
    def undecided(batch: Any) -> torch.Tensor:
        return torch.zeros(len(batch["input_ids"]), 2)

    data = write_data()
    tokenizer = tiny_tokenizer()
    both = train_with_distillation(tiny_bert(seed=0), [teacher, undecided], data, **QUIET)
    alone = train_with_distillation(tiny_bert(seed=0), undecided, data, tokenizer, **QUIET)
    assert logged(both) != logged(alone)


def test_what_cannot_be_used_is_refused(teacher: Any, write_data: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="DistillationArguments has no field 'temprature'"):
        train_with_distillation(tiny_bert(), teacher, write_data(), temprature=2.0)
    with pytest.raises(ConfigError, match="no tokenizer was found beside the teacher's weights"):
        train_with_distillation(tiny_bert(), tiny_bert(seed=1), write_data())
    with pytest.raises(DataError, match="needs one or two columns of text, or input_ids; it has"):
        train_with_distillation(tiny_bert(), teacher, Dataset.from_dict({"label": [0, 1]}))
    teacher.config.id2label = {0: "good", 1: "bad"}
    named = Dataset.from_dict({"text": ["a", "b"], "label": ["yes", "no"]})
    with pytest.raises(ModelError, match=r"map them \(data\.labels: \{no: good"):
        train_with_distillation(tiny_bert(), teacher, named)
    some = Dataset.from_dict({"text": ["a", "b"], "label": ["good", None]})
    with pytest.raises(DataError, match="1 of 2 rows have no label in 'label'"):
        train_with_distillation(tiny_bert(), teacher, some)


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["1", "0"], None, [1, 0]),
        ([2, 1], None, [1, 0]),
        ([-1, 1], None, [0, 1]),
        ([1.0, 0.0], None, [1, 0]),
        ([True, False], None, [1, 0]),
        (["Good", "bad"], None, [0, 1]),
        ([1, 0], ["bad", "good"], [0, 1]),
    ],
)
def test_labels_are_the_teachers(
    labels: list[Any], names: list[str] | None, numbers: list[int], teacher: Any
) -> None:
    teacher.config.id2label = {0: "good", 1: "bad"}
    data = Dataset.from_dict({"text": ["a film", "a plot"], "label": labels})
    if names is not None:
        data = data.cast_column("label", ClassLabel(names=names))
    encoded = data.map(lambda row: dict(tiny_tokenizer()(row["text"])), remove_columns="text")
    for rows in (data, encoded.rename_column("label", "labels")):
        trained: Any = train_with_distillation(tiny_bert(), teacher, rows, **QUIET).train_dataset
        assert [int(row["labels"]) for row in trained] == numbers


def test_rows_of_inputs_with_a_label_that_is_no_class_are_refused(teacher: Any) -> None:
    rows = [{**tiny_tokenizer()("a film"), "labels": label} for label in (-100, 2)]
    with pytest.raises(DataError, match="others 2, which is not a class of the model"):
        train_with_distillation(tiny_bert(), teacher, Dataset.from_list(rows), **QUIET)


def test_texts_are_cut_at_the_positions_of_both_models(tmp_path: Path) -> None:
    long = " ".join(["one"] * 80)
    data = Dataset.from_dict({"text": [long, "one"] * 8, "label": [0, 1] * 8})
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 512
    sizes: dict[str, int] = {}
    for who, positions in (("student", 16), ("teacher", 24), ("neither", 64)):
        student, teacher = tiny_bert(seed=0), tiny_bert(seed=1)
        short = {"student": student, "teacher": teacher}.get(who)
        if short is not None:
            short = tiny_bert(seed=2, max_position_embeddings=positions)
            student, teacher = (short, teacher) if who == "student" else (student, short)
        trainer = train_with_distillation(
            student, teacher, data, tokenizer, output_dir=str(tmp_path), **QUIET
        )
        rows: Any = trainer.train_dataset
        sizes[who] = max(len(ids) for ids in rows["input_ids"])
    assert sizes == {"student": 16, "teacher": 24, "neither": 64}


def test_roberta_counts_its_positions_from_behind_the_padding() -> None:
    config = RobertaConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=20, pad_token_id=1,
    )  # fmt: skip
    assert text_limit(None, RobertaForSequenceClassification(config), tiny_bert()) == 18
    assert text_limit(None, lambda batch: None) is None


@pytest.mark.parametrize("cache", [True, False])
def test_a_teacher_with_its_own_tokenizer_reads_its_own_tokens(
    cache: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    data = Dataset.from_dict({"text": words * 4, "label": [0, 1] * 16})
    mine, theirs = tiny_tokenizer(), tiny_tokenizer()
    theirs.add_tokens(["somewhere"])
    teacher = tiny_bert(seed=1)
    teacher.resize_token_embeddings(40)
    seen: list[int] = []
    teacher.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: seen.append(int(args[0].max()))
    )
    given: dict[str, Any] = {**QUIET, "output_dir": str(tmp_path), "cache": cache}
    with pytest.raises(ModelError, match="vocabularies of 25 and 40 tokens"):
        train_with_distillation(tiny_bert(seed=0), teacher, data, mine, **given)
    assert not seen
    data = data.map(lambda row: {"text": f"{row['text']} somewhere"})
    trainer = train_with_distillation(
        tiny_bert(seed=0), teacher, data, mine, teacher_processor=theirs, **given
    )
    assert max(seen) == 25  # the number of the word that only the teacher knows
    rows: Any = trainer.train_dataset
    assert max(max(ids) for ids in rows["input_ids"]) < 25


def test_data_of_other_kinds_are_refused() -> None:
    rows = TensorDataset(torch.zeros(4, 2), torch.zeros(4))
    for data in (DataLoader(rows), rows, [{"text": "one"}]):
        with pytest.raises(DataError, match=f"data is a {type(data).__name__}; give a file or"):
            train_with_distillation(tiny_bert(), tiny_bert(seed=1), data)


def test_words_as_labels_need_the_names_of_a_model() -> None:
    rows = Dataset.from_dict({"input_ids": [[2, 5, 3]] * 4, "labels": ["good", "bad"] * 2})
    texts = Dataset.from_dict({"text": ["a", "b"], "label": ["good", "bad"]})
    for data in (rows, texts):
        with pytest.raises(ModelError, match=r"the labels are words \(bad, good\) and the model"):
            train_with_distillation(tiny_bert(), tiny_bert(seed=1), data, tiny_tokenizer())
