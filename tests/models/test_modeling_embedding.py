"""Embedding models: pooling, folders in sentence-transformers' layout, copies."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertModel

from hfcompress.checkpoint.save import save_compressed
from hfcompress.errors import ModelError
from hfcompress.models.embedding_layout import EmbeddingLayout, read_layout
from hfcompress.models.modeling_embedding import AutoEmbeddingModel, as_embedding_model, pool
from hfcompress.models.sublayers import sublayers
from hfcompress.models.surgery import keep_units
from tests.tiny_embeddings import TEXTS, embedding_folder, tiny_embedder
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

MODES: Any = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def batch() -> dict[str, torch.Tensor]:
    return dict(tiny_tokenizer()(TEXTS, padding=True, return_tensors="pt"))


def vectors(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**batch()).logits
    return found


@pytest.mark.parametrize("mode", MODES)
def test_pooling_is_that_of_a_loop_over_real_tokens(mode: Any) -> None:
    torch.manual_seed(0)
    states = torch.randn(4, 6, 3)
    mask = torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]])
    found = pool(states, mask, mode)
    for row, (state, real) in enumerate(zip(states, mask.bool(), strict=True)):
        tokens = state[real]
        count = len(tokens)
        weights = torch.arange(1.0, count + 1)[:, None]
        expected = {
            "mean": tokens.sum(0) / count,
            "cls": tokens[0],
            "max": tokens.max(0).values,
            "mean_sqrt_len_tokens": tokens.sum(0) / count**0.5,
            "weightedmean": (tokens * weights).sum(0) / weights.sum(),
            "lasttoken": tokens[-1],
        }[mode]
        torch.testing.assert_close(found[row], expected)


def test_padding_does_not_count() -> None:
    model, tokens = tiny_embedder(), tiny_tokenizer()
    with torch.no_grad():
        alone = [model(**tokens(text, return_tensors="pt")).logits[0] for text in TEXTS]
    torch.testing.assert_close(vectors(model), torch.stack(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"pooling": ("cls",), "normalize": False}, {"dense": 8}, {"pooling": ("mean", "cls")}],
)
def test_saved_folder_gives_the_same_vectors(tmp_path: Path, options: dict[str, Any]) -> None:
    model = tiny_embedder(**options)
    model.save_pretrained(tmp_path)
    again, info = AutoEmbeddingModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(vectors(again), vectors(model))
    assert read_layout(tmp_path) == model.layout
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BertModel"]


@pytest.mark.parametrize("options", [{}, {"pooling": ("max",)}, {"dense": 8, "normalize": False}])
def test_sentence_transformers_reads_the_folder(tmp_path: Path, options: dict[str, Any]) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = embedding_folder(tmp_path, **options)
    found = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    expected = vectors(AutoEmbeddingModel.from_pretrained(folder)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_copies_and_pickles_keep_layout_and_weights() -> None:
    model = tiny_embedder(dense=8)
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert made.layout == model.layout
        assert torch.equal(vectors(made), vectors(model))
        made.get_parameter("embeddings.word_embeddings.weight").data.zero_()
        assert not torch.equal(vectors(made), vectors(model))


def test_uneven_widths_reload(tmp_path: Path) -> None:
    model = tiny_embedder()
    part = next(part for part in sublayers(model) if part.kind == "neurons")
    keep_units(model, part, list(range(10)))
    save_compressed(model, tmp_path)
    save_compressed(model, tmp_path)  # over an older save
    again = AutoEmbeddingModel.from_pretrained(tmp_path)
    assert torch.equal(vectors(again), vectors(model))
    assert again.encoder.layer[0].intermediate.dense.out_features == 10


def test_a_plain_encoder_needs_a_stated_pooling(tmp_path: Path) -> None:
    plain = tiny_bert(kind=BertModel)
    plain.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="does not say how token states become a vector"):
        AutoEmbeddingModel.from_pretrained(tmp_path)
    found = AutoEmbeddingModel.from_pretrained(tmp_path, pooling="cls", normalize=True)
    expected = as_embedding_model(plain, EmbeddingLayout(("cls",), normalize=True))
    assert torch.equal(vectors(found), vectors(expected))


def test_refuses_a_pooling_that_contradicts_the_folder(tmp_path: Path) -> None:
    folder = embedding_folder(tmp_path)
    with pytest.raises(ModelError, match=r"says its own pooling \(mean, normalized\)"):
        AutoEmbeddingModel.from_pretrained(folder, pooling="cls")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("1_Pooling/config.json", {"word_embedding_dimension": 32}, "names no pooling"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "names the pooling 'median'"),
        ("1_Pooling/config.json", {"pooling_mode": "cls", "include_prompt": False}, "prompts"),
        ("modules.json", [{"type": "os.system", "path": ""}], "has the module os.system"),
        ("modules.json", [{"path": ""}], "not a module"),
        ("modules.json", [], "lists nothing"),
        ("2_Dense/config.json", {"in_features": 32, "out_features": 8,
                                 "activation_function": "os.system"}, "not supported"),
    ],
)  # fmt: skip
def test_refuses_folders_that_do_not_say_enough(
    tmp_path: Path, file: str, change: object, message: str
) -> None:
    folder = embedding_folder(tmp_path, dense=8)
    (folder / file).write_text(json.dumps(change))
    with pytest.raises(ModelError, match=message):
        AutoEmbeddingModel.from_pretrained(folder)


def test_refuses_missing_dense_weights_and_decoders(tmp_path: Path) -> None:
    folder = embedding_folder(tmp_path, dense=8)
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights for its Dense layer"):
        AutoEmbeddingModel.from_pretrained(folder)
    config = {"model_type": "bart", "is_encoder_decoder": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="not an encoder"):
        AutoEmbeddingModel.from_pretrained(folder)
