"""Students of one vector for each token: what model2vec makes, and what reads their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import hfcompress
from hfcompress.distillation.static_student import (
    StaticStudentConfig,
    make_static_student,
    zipf_weights,
)
from hfcompress.errors import ConfigError, ModelError
from tests.tiny_embeddings import TEXTS, tiny_embedder
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

PLAIN = StaticStudentConfig(dimensions=None, smoothing=None)


def test_tokens_have_the_teachers_vectors_on_their_principal_components() -> None:
    teacher, tokenizer = tiny_embedder(), tiny_tokenizer()
    found = make_static_student(teacher, tokenizer, PLAIN).embedding.weight.detach().numpy()
    words = tokenizer.convert_ids_to_tokens([*range(len(tokenizer))])
    batch = tokenizer([word for word in words if word not in tokenizer.all_special_tokens],
                      return_tensors="pt")  # fmt: skip
    with torch.no_grad():
        vectors = teacher(**batch).logits.numpy()
    own = found[[n for n, word in enumerate(words) if word not in tokenizer.all_special_tokens]]
    expected, apart = (
        np.linalg.norm(rows[:, None] - rows[None], axis=-1) for rows in (vectors, own)
    )
    np.testing.assert_allclose(apart, expected, atol=1e-4)
    spread = found.var(0)
    assert (np.diff(spread) <= 1e-6).all()
    few = make_static_student(teacher, tokenizer, PLAIN.replace(dimensions=4)).embedding.weight
    np.testing.assert_allclose(few.detach().numpy(), found[:, :4], atol=1e-5)


def test_frequent_tokens_weigh_less() -> None:
    weights = zipf_weights(100, 1e-2)
    harmonic = sum(1 / n for n in range(2, 102))
    assert float(weights[3]) == pytest.approx(0.01 / (0.01 + 1 / (5 * harmonic)))
    assert (weights.diff() > 0).all()
    teacher, tokenizer = tiny_embedder(), tiny_tokenizer()
    plain, weighted = (
        make_static_student(teacher, tokenizer, StaticStudentConfig(dimensions=8, smoothing=one))
        for one in (None, 1e-4)
    )
    expected = plain.embedding.weight * zipf_weights(len(tokenizer), 1e-4)[:, None]
    torch.testing.assert_close(weighted.embedding.weight, expected)


def test_folders_load_with_sentence_transformers_and_with_load(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    student = make_static_student(tiny_embedder(), tokenizer, StaticStudentConfig(dimensions=8))
    folder = student.save_pretrained(tmp_path, tokenizer)
    ours: Any = hfcompress.load(folder)
    found = ours.encode(TEXTS)
    assert found.shape == (5, 8)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(ours.encode(TEXTS[1]), found[1], atol=1e-6)
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(found, theirs, atol=1e-5)


def test_refuses_other_teachers_and_more_dimensions(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="BertForSequenceClassification gives no vectors"):
        make_static_student(cast(Any, tiny_bert()), tiny_tokenizer())
    with pytest.raises(ConfigError, match="dimensions is 256 and the teacher's vectors have 32"):
        make_static_student(tiny_embedder(), tiny_tokenizer())
    folder = make_static_student(tiny_embedder(), tiny_tokenizer(), PLAIN).save_pretrained(
        tmp_path, tiny_tokenizer()
    )
    (folder / "0_StaticEmbedding" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"has no readable table 'embedding.weight'"):
        hfcompress.load(folder)
