"""Damaged folders by hand, each with its origin, and a short seeded draw of `bad_input`."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks._watched import single_threaded
from benchmarks.bad_input import Laboratory
from hfcompress.cli.commands import main
from hfcompress.distillation.cache import TeacherCache
from hfcompress.distillation.cache_files import FORMAT
from hfcompress.errors import DataError

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


def edited(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def header(folder: Path, text: bytes, length: int | None = None) -> None:
    size = struct.pack("<Q", len(text) if length is None else length)
    (folder / WEIGHTS).write_bytes(size + text)


def replaced_by(folder: Path, name: str, make: Callable[[Path], object]) -> None:
    (folder / name).unlink()
    make(folder / name)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    # Origin: the header's length of safetensors is read before anything else; 2**63 bytes of it.
    "endless header": (lambda f: header(f, b"{}", 2**63), "cannot be loaded"),
    # Origin: safetensors' audit by Trail of Bits (2023): tensors that lie over each other.
    "overlapping tensors": (
        lambda f: header(f, b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                            b'"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'),
        "cannot be loaded"),
    # Origin: a shape whose product overflows 64 bits.
    "overflowing shape": (
        lambda f: header(f, b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],'
                            b'"data_offsets":[0,0]}}'),
        "belong to different models"),
    # Origin: a config may ask for any number of layers; each is built before a weight is read.
    "a billion layers": (
        lambda f: edited(f / CONFIG, num_hidden_layers=10**9), "1,000,000,000 layers"),
    # Origin: the same for a table of 128 GB.
    "a billion tokens": (lambda f: edited(f / CONFIG, vocab_size=10**9), "cannot be loaded"),
    # Origin: a layer less: what the file has of it would be left out without a word.
    "a layer less": (
        lambda f: edited(f / CONFIG, num_hidden_layers=1), "is in the file and not in the model"),
    # Origin: one layer more, which transformers fills with random numbers.
    "a layer more": (
        lambda f: edited(f / CONFIG, num_hidden_layers=3), "is missing in the file"),
    # Origin: CVE-2023-6730 and its kin: code that a checkpoint names.
    "code of its own": (
        lambda f: edited(f / CONFIG, model_type="own",
                         auto_map={"AutoConfig": "own.C", "AutoModel": "own.M"}),
        "hfcompress runs no code of a model"),
    # Origin: a pipe in a file's place: opening it waits for a writer, for ever.
    "a pipe": (lambda f: replaced_by(f, TOKENIZER, os.mkfifo), f"{TOKENIZER} is not a file"),
    # Origin: a link to a device that has no end.
    "a link to /dev/zero": (
        lambda f: replaced_by(f, WEIGHTS, lambda path: path.symlink_to("/dev/zero")),
        f"{WEIGHTS} is not a file"),
    "a link to itself": (
        lambda f: replaced_by(f, WEIGHTS, lambda path: path.symlink_to(path)),
        f"{WEIGHTS} is not a file"),
    "a folder": (lambda f: replaced_by(f, TOKENIZER, Path.mkdir), f"{TOKENIZER} is not a file"),
    # Origin: json of Python calls itself for each bracket.
    "deep brackets": (
        lambda f: (f / CONFIG).write_text("[" * 100_000), "cannot be loaded"),
    "labels by words": (
        lambda f: edited(f / CONFIG, id2label={"zero": "bad"}), "cannot be loaded"),
    # Origin: tokenizers' enums without tags: any wrong field is "did not match any variant".
    "another tokenizer": (
        lambda f: edited(f / TOKENIZER, model={"type": "Evil"}), "cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_ends_in_one_sentence(
    name: str, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, expected = DAMAGES[name]
    damage(model_folder)
    assert main(["inspect", str(model_folder)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True]
    assert expected in lines[0]


def test_pickles_of_a_cache_are_not_read(tmp_path: Path) -> None:
    # Origin: CVE-2019-6446: numpy.load unpickled arrays of objects.
    arrays = [{"name": "logits", "dtype": "float32", "shape": [2], "by_token": False}]
    meta = {"teacher": "t", "data": "d", "preprocessing": "", "rows": 1, "task": "classification"}
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "arrays": arrays, "format": FORMAT}))
    np.save(tmp_path / "offsets.npy", np.zeros(2, np.int64))
    np.save(tmp_path / "logits.npy", np.array([[Canary(tmp_path), None]]), allow_pickle=True)
    with pytest.raises(DataError, match="missing, truncated or damaged"):
        TeacherCache(tmp_path)
    assert not (tmp_path / "canary").exists()


class Canary:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder / "canary"),)


def test_pickled_weights_run_nothing(model_folder: Path) -> None:
    # Origin: torch.load before weights_only (CVE-2025-32434 even with it, up to torch 2.5).
    torch.save({"a": Canary(model_folder)}, model_folder / "pytorch_model.bin")
    (model_folder / WEIGHTS).unlink()
    assert main(["inspect", str(model_folder)]) == 2
    assert not (model_folder / "canary").exists()


def test_a_short_draw_of_the_benchmark_finds_no_fault(tmp_path: Path) -> None:
    with single_threaded():
        laboratory = Laboratory(tmp_path / "laboratory", backends=("torch",))
        counts = {"recipes": 8, "checkpoints": 6, "quantized": 3, "caches": 2, "runs": 1}
        for kind, count in counts.items():
            for case in laboratory.cases(kind, count, seed=1):
                assert case.faults == (), f"{kind}/{case.number} {case.what}: {case.ended.output}"


@pytest.mark.parametrize("name", ["hfcompress.json", "config.json", "tokenizer.json"])
def test_a_pipe_in_a_quantized_folder_is_not_waited_for(
    name: str, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Origin: as above; found by a draw of `bad_input`.
    (model_folder / "hfcompress.json").write_text("{}")
    replaced_by(model_folder, name, os.mkfifo)
    assert main(["predict", str(model_folder), "good"]) == 2
    assert f"{name} is not a file" in capsys.readouterr().err
