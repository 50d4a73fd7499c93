"""Push and load again, against a server: every kind of folder, and no token in what is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification

import hfcompress
from hfcompress import (
    CompressionPipeline,
    PruningConfig,
    QuantizationConfig,
    ShrinkConfig,
    load,
    prune,
    push,
    quantize,
    save_compressed,
    shrink,
)
from hfcompress.cli import main
from hfcompress.errors import BadInputError, SourceError
from tests.hub_server import HubServer, serving
from tests.tiny_models import logits, shrinkable_batches, shrinkable_model, tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the hub's own
TOKEN = "hf_" + "q" * 30


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with serving(monkeypatch, tmp_path / "hf") as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.mark.parametrize("kind", ["pruned", "shrunk", "packed"])
def test_a_torch_model_comes_back_from_the_hub(kind: str, hub: HubServer, tmp_path: Path) -> None:
    model, batches = shrinkable_model("bert"), shrinkable_batches("bert")
    if kind == "shrunk":
        shrink(model, ShrinkConfig(macs=0.6), batches)
    else:
        prune(model, PruningConfig(sparsity=0.6))
    save_compressed(model, tmp_path / "saved", sparse=kind == "packed")
    address = push(tmp_path / "saved", "org/small", private=True)
    assert address == f"{hub.url}/org/small"
    again = AutoModelForSequenceClassification.from_pretrained("org/small")
    assert torch.equal(logits(again, batches[0]), logits(model, batches[0]))


def test_an_int8_model_is_pushed_loaded_and_predicts(
    hub: HubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, tokenizer = tiny_bert(), tiny_tokenizer()
    found = quantize(model, QuantizationConfig(backend="torch"))
    found.push_to_hub("org/int8", tokenizer)
    local = load(found.save(tmp_path / "int8", tokenizer))
    remote = load("org/int8")
    assert np.array_equal(remote.scores(["good film"]), local.scores(["good film"]))
    assert main(["predict", "org/int8", "good film"]) == 0
    shown = capsys.readouterr()
    assert "good film" in shown.out
    assert main(["predict", "org/int9", "good film"]) == 2
    assert "did you mean org/int8?" in capsys.readouterr().err.replace("\n", " ")
    assert TOKEN not in shown.out + shown.err


def test_the_command_pushes_a_folder_and_hides_the_token(
    hub: HubServer, model_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["push", str(model_folder), "org/small"]) == 0
    shown = capsys.readouterr()
    assert f"{hub.url}/org/small" in shown.out
    kept = hub.repositories["model", "org/small"].files
    assert set(kept) == {path.name for path in model_folder.iterdir()}
    assert not any(TOKEN.encode() in data for data in kept.values())
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)
    assert TOKEN not in shown.out + shown.err


def test_a_pipeline_pushes_its_model_with_a_card(
    hub: HubServer, write_data: Callable[..., Path]
) -> None:
    model, tokenizer = tiny_bert(), tiny_tokenizer()
    result = CompressionPipeline([PruningConfig(sparsity=0.5)]).run(
        model, tokenizer, write_data(rows=20)
    )
    result.push_to_hub("org/pipeline")
    text = hub.repositories["model", "org/pipeline"].files["README.md"].decode()
    data: dict[str, Any] = ModelCard(text).data.to_dict()  # type: ignore[no-untyped-call]
    assert data["tags"] == ["hfcompress", "pruned"]
    assert "sparsity: 0.5" in text
    assert str(Path.cwd()) not in text


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("forbidden", "this login may not write to 'org/small'"),
        ("server", "the hub failed with error 500"),
        ("rate", "the hub has had too many requests"),
        ("token", "the hub does not accept your token; write: hf auth login"),
    ],
)
def test_each_fault_of_a_push_has_its_sentence(
    fault: Any, sentence: str, hub: HubServer, model_folder: Path
) -> None:
    hub.add("model", "org/small", {}, fault)
    with pytest.raises(SourceError) as caught:
        push(model_folder, "org/small")
    assert sentence in str(caught.value)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "name", "message"),
    [("model", "a/b/c", "cannot parse"), ("model", "org/x@v1", "names a revision"),
     (".", "org/x", "it has no config.json")],
)  # fmt: skip
def test_what_cannot_be_pushed(
    folder: str, name: str, message: str, hub: HubServer, model_folder: Path
) -> None:
    with pytest.raises(BadInputError, match=message):
        push(model_folder.parent / folder, name)


def test_a_push_needs_a_login(
    hub: HubServer, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SourceError, match="nobody is logged in to the hub; write: hf auth login"):
        hfcompress.push(model_folder, "org/small")
