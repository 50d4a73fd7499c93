"""The teacher cache: what it gives is what the teacher says, and it never answers for another."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
)

from hfcompress.distillation import cache_files as cache_build
from hfcompress.distillation.cache import TeacherCache
from hfcompress.errors import ConfigError, DataError
from tests.fresh_process import run_fresh
from tests.tiny_models import shrinkable_model, tiny_bert
from tests.tiny_tokenizers import sentence, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def encoded(rows: int = 20, seed: int = 0) -> Dataset:
    generator = random.Random(seed)
    texts = [sentence(generator, index % 2 == 1) for index in range(rows)]
    tokens = dict(TOKENIZER(texts))
    return Dataset.from_dict({**tokens, "labels": [index % 2 for index in range(rows)]})


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    return dict(TOKENIZER.pad(items, return_tensors="pt"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "caches"


def build(teacher: Any, rows: Dataset, folder: Path, **options: Any) -> TeacherCache:
    return TeacherCache.build(teacher, rows, collate, folder=folder, batch_size=4, **options)


def test_lookups_are_what_the_teacher_says(folder: Path) -> None:
    teacher, rows = tiny_bert().train(), encoded()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    cache = build(teacher, rows, folder, hidden_layers=(1, 0))
    assert len(cache) == 20
    assert cache.hidden_layers == (0, 1)
    shuffled = cache.attach(rows).shuffle(seed=3)
    batch = TeacherCache.collator(collate)([shuffled[i] for i in range(7)])
    found = cache.lookup(batch.pop("row"))
    batch.pop("labels")
    teacher.train(False)
    with torch.no_grad():
        said = teacher(**batch, output_hidden_states=True)
    torch.testing.assert_close(found.logits, said.logits, atol=1e-5, rtol=0)
    mask = batch["attention_mask"].bool()
    for layer in (0, 1):
        state, own = found.hidden_states[layer], said.hidden_states[layer + 1]
        torch.testing.assert_close(state[mask], own[mask], atol=4e-3, rtol=1e-3)
        assert not state[~mask].any()
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_cache_is_computed_once_and_for_nobody_else(folder: Path) -> None:
    teacher, rows = tiny_bert(), encoded()
    calls: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))

    first = build(teacher, rows, folder, progress=progress)
    assert calls[-1] == (20, 20)
    calls.clear()
    again = build(tiny_bert(), rows, folder, progress=progress)
    assert not calls
    assert again.folder == first.folder
    # Labels and their order are not what the teacher reads.
    assert build(teacher, rows.remove_columns("labels"), folder).folder == first.folder
    others = [
        build(tiny_bert(seed=1), rows, folder),
        build(teacher, encoded(seed=1), folder),
        build(teacher, rows.select(range(19, -1, -1)), folder),
        build(teacher, rows, folder, hidden_layers=(0,)),
        build(teacher, rows, folder, precision="bf16"),
        build(teacher, rows, folder, preprocessing="another size"),
    ]
    assert len({cache.folder for cache in [first, *others]}) == 7
    everything = torch.arange(20)
    logits = first.lookup(everything).logits
    assert not torch.allclose(others[0].lookup(everything).logits, logits)
    torch.testing.assert_close(others[2].lookup(everything).logits, logits.flip(0))
    rough = others[4].lookup(everything).logits
    assert not torch.equal(rough, logits)
    torch.testing.assert_close(rough, logits, atol=0.05, rtol=0)


def test_another_teacher_or_other_rows_are_refused(folder: Path) -> None:
    teacher, rows = tiny_bert(), encoded()
    cache = build(teacher, rows, folder)
    assert len(TeacherCache.open(cache.folder, teacher, rows)) == 20
    with pytest.raises(DataError, match="was built from another teacher"):
        TeacherCache.open(cache.folder, tiny_bert(seed=1))
    teacher.config.hidden_act = "relu"
    with pytest.raises(DataError, match="was built from another teacher"):
        TeacherCache.open(cache.folder, teacher)
    with pytest.raises(DataError, match="was built for other rows"):
        TeacherCache.open(cache.folder, rows=encoded(seed=1))
    with pytest.raises(DataError, match="has 20 rows and the data 19"):
        cache.attach(rows.select(range(19)))
    for number in (20, -1):
        with pytest.raises(DataError, match=f"row {number} is out of range"):
            cache.lookup([0, number])


@pytest.mark.parametrize("name", ["logits.npy", "hidden_1.npy", "offsets.npy", "meta.json"])
def test_a_file_that_is_cut_short_or_missing(name: str, folder: Path) -> None:
    teacher, rows = tiny_bert(), encoded()
    path = build(teacher, rows, folder, hidden_layers=(1,)).folder / name
    whole = path.read_bytes()
    for content in (whole[:-40], whole[:20], b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match="build the cache again") as caught:
            TeacherCache(path.parent)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match="build the cache again"):
        build(teacher, rows, folder, hidden_layers=(1,))


def test_arrays_that_are_missing_double_or_of_other_names(folder: Path) -> None:
    path = build(tiny_bert(), encoded(), folder, hidden_layers=(1,)).folder
    meta = json.loads((path / "meta.json").read_text())
    logits, hidden = sorted(meta["arrays"], key=lambda item: str(item["name"]), reverse=True)
    for arrays in ([hidden], [logits, logits], [logits, {**hidden, "name": "../hidden_1"}], []):
        (path / "meta.json").write_text(json.dumps({**meta, "arrays": arrays}))
        with pytest.raises(DataError, match="build the cache again"):
            TeacherCache(path)


def test_a_file_that_cannot_be_read_is_damaged(folder: Path) -> None:
    path = build(tiny_bert(), encoded(), folder).folder / "offsets.npy"
    path.unlink()
    path.symlink_to("/proc/self/mem")  # a file to stat, and an error to read
    with pytest.raises(DataError, match="build the cache again"):
        TeacherCache(path.parent)


def test_a_build_that_was_cut_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_build, "_SAVE_EVERY", 1)
    teacher, rows = tiny_bert(), encoded(40)
    whole = build(teacher, rows, folder / "whole", hidden_layers=(1,))
    asked: list[int] = []

    def watch(limit: int) -> Any:
        def count(module: Any, args: Any) -> None:
            asked.append(1)
            if len(asked) > limit:
                raise KeyboardInterrupt

        return count

    handle = teacher.register_forward_pre_hook(watch(6))
    with pytest.raises(KeyboardInterrupt):
        build(teacher, rows, folder, hidden_layers=(1,))
    handle.remove()
    asked.clear()
    handle = teacher.register_forward_pre_hook(watch(1000))
    cache = build(teacher, rows, folder, hidden_layers=(1,))
    handle.remove()
    assert len(asked) == 1 + 4  # the first batch again for the shapes, then those not done
    everything = torch.arange(40)
    found, wanted = cache.lookup(everything), whole.lookup(everything)
    assert torch.equal(found.logits, wanted.logits)
    assert torch.equal(found.hidden_states[1], wanted.hidden_states[1])
    assert sorted(path.name for path in cache.folder.iterdir()) == [
        "hidden_1.npy", "logits.npy", "meta.json", "offsets.npy",
    ]  # fmt: skip


def test_a_function_as_teacher_has_a_name(folder: Path) -> None:
    rows = encoded()

    def votes(batch: Any) -> Tensor:
        return torch.stack([batch["input_ids"].sum(1), -batch["input_ids"].sum(1)], 1).float()

    cache = build(votes, rows, folder, identity="sum of ids")
    sums = [float(sum(ids)) for ids in rows["input_ids"]]
    assert cache.lookup([3, 1]).logits[:, 0].tolist() == [sums[3], sums[1]]
    with pytest.raises(ConfigError, match="needs identity"):
        build(votes, rows, folder)
    with pytest.raises(ConfigError, match="hidden_layers"):
        build(votes, rows, folder, identity="x", hidden_layers=(0,))
    with pytest.raises(DataError, match="rows is empty"):
        build(votes, rows.select([]), folder, identity="x")


def test_logits_of_tokens_and_of_spans_are_kept_by_token(folder: Path) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 25, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16,
    }  # fmt: skip
    rows = encoded().remove_columns("labels")
    batch = collate([rows[index] for index in (2, 9, 4)])
    mask = batch["attention_mask"].bool()
    tagger = BertForTokenClassification(BertConfig(**sizes)).train(False)
    reader = BertForQuestionAnswering(BertConfig(**sizes)).train(False)
    with torch.no_grad():
        tags = tagger(**batch).logits
        said = reader(**batch)
    found = build(tagger, rows, folder).lookup([2, 9, 4]).logits
    torch.testing.assert_close(found[mask], tags[mask], atol=1e-5, rtol=0)
    found = build(reader, rows, folder).lookup([2, 9, 4]).logits
    assert found.shape == (3, 2, mask.shape[1])
    torch.testing.assert_close(found[:, 0][mask], said.start_logits[mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, 1][mask], said.end_logits[mask], atol=1e-5, rtol=0)


def test_images_are_kept_and_their_row_passes_the_transform(folder: Path) -> None:
    teacher = shrinkable_model("vit")
    pixels = torch.randn(6, 3, 16, 16)

    def load(batch: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": [pixels[number] for number in batch["number"]]}

    def stack(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([item["pixel_values"] for item in items])}

    rows = Dataset.from_dict({"number": list(range(6))}).with_transform(load)
    cache = TeacherCache.build(teacher, rows, stack, hidden_layers=(2,), folder=folder)
    shuffled = cache.attach(rows).select([5, 2])
    batch = TeacherCache.collator(stack)([shuffled[0], shuffled[1]])
    assert batch["row"].tolist() == [5, 2]
    found = cache.lookup(batch["row"])
    with torch.no_grad():
        said = teacher(pixels[[5, 2]], output_hidden_states=True)
    torch.testing.assert_close(found.logits, said.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.hidden_states[2], said.hidden_states[3], atol=4e-3, rtol=1e-3)


def test_another_process_reads_the_same(folder: Path) -> None:
    cache = build(tiny_bert(), encoded(), folder)
    code = (
        "import sys; from hfcompress.distillation.cache import TeacherCache; "
        "print(TeacherCache(sys.argv[1]).lookup([4, 0]).logits.double().sum().item())"
    )
    assert (
        float(run_fresh(code, str(cache.folder)))
        == cache.lookup([4, 0]).logits.double().sum().item()
    )
    assert np.load(cache.folder / "logits.npy", mmap_mode="r").dtype == np.float32


def test_the_default_place_is_the_cache_of_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hub"))
    cache = TeacherCache.build(tiny_bert(), encoded(4), collate)
    assert cache.folder.parent == tmp_path / "hub" / "hfcompress-teachers"


@pytest.mark.parametrize("name", ["logits.npy", "offsets.npy", "meta.json"])
def test_a_changed_cache_is_refused_or_set_aside_and_built_again(name: str, folder: Path) -> None:
    teacher, rows = tiny_bert(), encoded()
    notes: list[str] = []
    cache = build(teacher, rows, folder, damaged=notes.append)
    before = cache.lookup(torch.arange(20)).logits.clone()
    content = bytearray((cache.folder / name).read_bytes())
    content[-2] ^= 64
    (cache.folder / name).write_bytes(content)
    with pytest.raises(DataError, match="build the cache again"):
        build(teacher, rows, folder)
    again = build(teacher, rows, folder, damaged=notes.append)
    assert torch.equal(again.lookup(torch.arange(20)).logits, before)
    assert cache.folder.with_name(f"{cache.folder.name}.damaged").is_dir()
    assert len(notes) == 1
    assert "built again" in notes[0]


def test_files_that_a_killed_build_had_begun_are_made_anew(folder: Path) -> None:
    teacher, rows = tiny_bert(), encoded(40)
    whole = build(teacher, rows, folder / "whole", hidden_layers=(1,))
    partial = folder / f"{whole.folder.name}.partial-4"
    partial.mkdir()
    for name in ("logits.npy", "offsets.npy", "hidden_1.npy"):
        (partial / name).write_bytes((whole.folder / name).read_bytes()[:40])
    cache = build(teacher, rows, folder, hidden_layers=(1,))
    assert not partial.exists()
    everything = torch.arange(40)
    assert torch.equal(cache.lookup(everything).logits, whole.lookup(everything).logits)
