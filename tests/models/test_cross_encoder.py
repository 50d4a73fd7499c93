"""CrossEncoder folders of three generations are read, and given back so that it reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig

import hfcompress
from hfcompress.errors import ModelError
from hfcompress.models.cross_encoder import AutoCrossEncoder
from hfcompress.tasks.registry import infer_task
from tests.tasks.ranked import PAIRS, reranker_folder
from tests.tiny_tokenizers import tiny_tokenizer

IDENTITY = "torch.nn.modules.linear.Identity"
MODULES = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}]  # noqa: E501  # fmt: skip

HEAD = {
    "transformer_task": "sequence-classification", "module_output_name": "scores",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
}  # fmt: skip


def change(path: Path, **fields: Any) -> None:
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**data, **fields}))


def version_6(folder: Path, **settings: Any) -> Path:
    """The folder with the files that CrossEncoder 6 adds."""
    (folder / "modules.json").write_text(json.dumps(MODULES))
    usual: dict[str, Any] = {
        "model_type": "CrossEncoder",
        "prompts": {},
        "default_prompt_name": None,
    }
    change(folder / "config_sentence_transformers.json", **{**usual, **settings})
    change(folder / "sentence_bert_config.json", **HEAD)
    return folder


def folder_of(generation: str, path: Path) -> Path:
    folder = reranker_folder(path)
    if generation == "3":
        change(folder / "config.json", sbert_ce_default_activation_function=IDENTITY)
    elif generation == "4":
        change(folder / "config.json", sentence_transformers={"activation_fn": IDENTITY})
    elif generation == "6":
        version_6(folder, activation_fn=IDENTITY)
    return folder


@pytest.mark.parametrize("generation", ["none", "3", "4", "6"])
def test_folders_of_every_generation_are_read_and_given_back(
    tmp_path: Path, generation: str
) -> None:
    library = pytest.importorskip("sentence_transformers")
    folder = folder_of(generation, tmp_path / "given")
    expected = library.CrossEncoder(str(folder), device="cpu").predict(PAIRS)
    assert (np.abs(expected) > 1).any() == (generation != "none")  # logits, or a sigmoid's values
    model = AutoCrossEncoder.from_pretrained(folder)
    assert model.config.problem_type == "multi_label_classification"
    model.save_pretrained(tmp_path / "back")
    tiny_tokenizer().save_pretrained(tmp_path / "back")
    back = library.CrossEncoder(str(tmp_path / "back"), device="cpu")
    np.testing.assert_allclose(back.predict(PAIRS), expected, atol=1e-6)
    for known in ("back", *(("given",) if generation != "none" else ())):
        ours: Any = hfcompress.load(tmp_path / known)
        np.testing.assert_allclose(ours.predict(PAIRS), expected, atol=1e-6)
    found = infer_task(AutoConfig.from_pretrained(tmp_path / "back"), "back")
    assert found.name == "text-ranking"


def test_refuses_what_follows_or_precedes_the_classifier(tmp_path: Path) -> None:
    folder = version_6(reranker_folder(tmp_path), activation_fn="torch.nn.modules.activation.Tanh")
    with pytest.raises(ModelError, match=r"makes scores with .*Tanh"):
        AutoCrossEncoder.from_pretrained(folder)
    version_6(folder, activation_fn=IDENTITY, prompts={"q": "query: "}, default_prompt_name="q")
    with pytest.raises(ModelError, match="puts 'query: ' before every query"):
        AutoCrossEncoder.from_pretrained(folder)
    version_6(folder, prompts={})
    (folder / "modules.json").write_text(json.dumps([*MODULES, {"type": "a.Dense", "path": "1"}]))
    with pytest.raises(ModelError, match="lists Transformer, Dense; a reranker is one Transformer"):
        AutoCrossEncoder.from_pretrained(folder)
    version_6(folder)
    change(folder / "sentence_bert_config.json", transformer_task="text-generation")
    with pytest.raises(ModelError, match="transformer_task text-generation"):
        AutoCrossEncoder.from_pretrained(folder)
