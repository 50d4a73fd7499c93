"""``load(folder)``: what it takes, the tokens and the scores that come of it, and its copies."""

from __future__ import annotations

import copy
import json
import pickle
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import (
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTImageProcessorPil,
    pipeline,
)

import hfcompress
from hfcompress.errors import ConfigError, DataError, ModelError
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.quantize import quantize
from tests.forked import run_script
from tests.tiny_images import image_model
from tests.tiny_models import text_batches, tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("shared_exports")
TEXTS = ["a good film", "the plot is weak", "music"]
ENGINES = ("onnxruntime", "openvino", "torch")
LONG = " ".join(["good", "dull", "film", "the", "music"] * 8)


def saved(
    folder: Path, model: Any, tokenizer: Any, backend: str = "onnxruntime", **options: Any
) -> Path:
    pytest.importorskip(backend)
    config = QuantizationConfig.from_dict({"backend": backend, **options})
    return quantize(model, config, text_batches(vocabulary=25)).save(folder, tokenizer)


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("predictor") / "folder"
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return hfcompress.load(saved(folder, tiny_bert(), tokenizer, mode="none"))


# --- what it takes -----------------------------------------------------------------------------


def test_every_container_of_texts_gives_the_same_scores(classify: Any) -> None:
    containers: list[Any] = [
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, object),
        pd.Series(TEXTS, index=[7, 8, 9]),
        Dataset.from_dict({"text": TEXTS})["text"],
        Dataset.from_dict({"text": TEXTS}),
        (text for text in TEXTS),
        dict.fromkeys(TEXTS).keys(),
    ]
    expected = classify(TEXTS)
    assert [set(row) for row in expected] == [{"label", "score"}] * 3
    for given in containers:
        assert classify(given) == expected, type(given)
    np.testing.assert_array_equal(classify.scores(iter(TEXTS), 2), classify.scores(TEXTS, 2))


def test_one_text_gives_one_answer(classify: Any) -> None:
    (expected,) = classify(TEXTS[:1])
    assert classify(TEXTS[0]) == classify(np.array(TEXTS[0])) == expected
    assert classify({"text": TEXTS[0]}) == expected
    assert classify.scores(TEXTS[0]).shape == (1, 2)
    two = classify(("a good film", "music"))  # two texts, not a pair
    assert two == classify(["a good film", "music"])


def test_pairs_are_tuples_in_a_list_or_a_text_pair(classify: Any) -> None:
    firsts, seconds = TEXTS[:2], TEXTS[1:]
    expected = classify([*zip(firsts, seconds, strict=True)])
    assert classify(firsts, text_pair=seconds) == expected
    assert classify(pd.Series(firsts), text_pair=np.array(seconds)) == expected
    assert classify(firsts[0], text_pair=seconds[0]) == expected[0]
    assert classify([{"text": firsts[0], "text_pair": seconds[0]}]) == expected[:1]
    assert expected[0] != classify(firsts)[0]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (None, "None is not a text"),
        (3, "3 is not a text"),
        (b"film", "a bytes is not a text"),
        (["good", None], "example 1 is None; give a text"),
        (pd.Series(["good", float("nan")]), "example 1 is NaN"),
        (["good", 1.5], r"example 1 is 1\.5"),
        ([["good", "dull"]], "example 0 is a list of 2; give a text, or a tuple of two"),
        ([("a", "b", "c")], "example 0 is a tuple of 3"),
        ([("good", None)], "example 0 is None"),
        ({"sentence": "good"}, r"example 0 is a dict with the keys \['sentence'\]"),
        (pd.DataFrame({"text": TEXTS}), "a DataFrame has several columns; give one of them"),
        ({"good", "dull"}, "a set has no order"),
        ([], "nothing to classify"),
        (["\ud800"], "a text cannot be encoded"),
    ],
)
def test_refuses_what_is_not_a_text(classify: Any, given: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        classify(given)


def test_refuses_unequal_pairs_and_sizes_below_one(classify: Any) -> None:
    with pytest.raises(DataError, match="3 texts and 1 in text_pair"):
        classify(TEXTS, text_pair=["music"])
    with pytest.raises(DataError, match="1 texts and 1 in text_pair"):
        classify("good", text_pair=["music"])
    with pytest.raises(ConfigError, match="top_k is 0; give a number from 1"):
        classify(TEXTS, top_k=0)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        classify(TEXTS, batch_size=0)


def images() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(3)]


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("images") / "folder"
    made = quantize(image_model("vit"), QuantizationConfig(mode="none"))
    return hfcompress.load(
        made.save(folder, ViTImageProcessorPil(size={"height": 32, "width": 32}))
    )


def test_every_container_of_images_gives_the_same_scores(look: Any, tmp_path: Path) -> None:
    given = images()
    paths = [tmp_path / f"{place}.png" for place in range(3)]
    for image, path in zip(given, paths, strict=True):
        image.save(path)
    arrays = np.stack([np.asarray(image) for image in given])
    expected = look(given)
    for container in (
        tuple(given), paths, pd.Series([str(path) for path in paths]), arrays, list(arrays),
        (image for image in given), [path.read_bytes() for path in paths],
        Dataset.from_dict({"image": given})["image"], torch.from_numpy(arrays),
    ):  # fmt: skip
        assert look(container) == expected, type(container)
    for one in (given[0], paths[0], str(paths[0]), arrays[0], torch.from_numpy(arrays[0])):
        assert look(one) == expected[0], type(one)


def test_refuses_what_is_not_an_image(look: Any) -> None:
    with pytest.raises(DataError, match="None is not an image; give a path"):
        look(None)
    with pytest.raises(DataError, match="example 1 is None; give a path or an image"):
        look([images()[0], None])
    with pytest.raises(DataError, match="example 0 is NaN"):
        look(pd.Series([float("nan")]))
    with pytest.raises(DataError, match="images, which have no text_pair"):
        look(images(), text_pair=images())


# --- tokens ------------------------------------------------------------------------------------


def tokenizers() -> Iterator[Any]:
    for truncation, padding in (("left", "right"), ("right", "left")):
        made = tiny_tokenizer()
        made.model_max_length = 12
        made.truncation_side, made.padding_side = truncation, padding
        made.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        yield made
    plain = tiny_tokenizer()
    plain.model_input_names = ["input_ids"]
    yield plain
    special = tiny_tokenizer()
    special.split_special_tokens = True
    special._pad_token_type_id = 1
    yield special


@pytest.mark.parametrize(
    "tokenizer", list(tokenizers()), ids=["left", "padded left", "ids", "split"]
)
def test_tokens_are_those_of_the_saved_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    made = quantize(tiny_bert(), QuantizationConfig(mode="none"))
    folder = made.save(tmp_path / "folder", tokenizer)
    classify = hfcompress.load(folder)
    seen: list[Any] = []
    classify.engine.logits = lambda arrays: seen.append(arrays) or np.zeros((3, 2), np.float32)  # type: ignore[method-assign, func-returns-value]
    example = runpy.run_path(str(folder / "example.py"))
    settings = json.loads((folder / "hfcompress.json").read_text())["text"]
    texts = [LONG, "good [SEP] film", "music"]
    expected = dict(tokenizer(texts, truncation=True, padding=True, return_tensors="np"))
    classify(texts)
    assert seen[0].keys() == expected.keys()
    rows = example["make_tokenizer"](settings).encode_batch(texts)
    encoded = example["as_arrays"](rows, settings["inputs"])
    for name, array in expected.items():
        np.testing.assert_array_equal(seen[0][name], array, err_msg=name)
        np.testing.assert_array_equal(encoded[name], array, err_msg=name)
    if "attention_mask" not in expected:
        assert encoded["attention_mask"].all()
        assert not encoded["token_type_ids"].any()
    pairs = [(LONG, "good film"), ("good", LONG), ("a", "b")]
    firsts, seconds = zip(*pairs, strict=True)
    classify(pairs)
    options = {"truncation": True, "padding": True, "return_tensors": "np"}
    expected = dict(tokenizer(list(firsts), list(seconds), **options))
    for name, array in expected.items():
        np.testing.assert_array_equal(seen[1][name], array, err_msg=name)


def test_long_texts_stop_at_the_models_positions(tmp_path: Path) -> None:
    config = RobertaConfig(
        vocab_size=25, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=22, pad_token_id=0, type_vocab_size=1,
    )  # fmt: skip
    model = RobertaForSequenceClassification(config).train(False)
    tokenizer = tiny_tokenizer()
    folder = quantize(model, QuantizationConfig(mode="none")).save(tmp_path / "r", tokenizer)
    batch = tokenizer([LONG], truncation=True, max_length=21, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits.softmax(-1).numpy()
    np.testing.assert_allclose(hfcompress.load(folder).scores(LONG), expected, atol=1e-4)


def test_padding_is_the_models_where_the_tokenizer_has_none(tmp_path: Path) -> None:
    model, tokenizer = tiny_bert(pad_token_id=3), tiny_tokenizer()
    tokenizer.pad_token = None
    folder = saved(tmp_path / "folder", model, tokenizer, mode="none")
    assert json.loads((folder / "hfcompress.json").read_text())["text"]["pad_id"] == 3


# --- scores ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize(
    ("labels", "problem"), [(3, "multi_label_classification"), (1, "regression"), (1, None)]
)
def test_scores_are_those_of_the_pipeline(
    backend: str, labels: int, problem: str | None, tmp_path: Path
) -> None:
    model, tokenizer = tiny_bert(num_labels=labels, problem_type=problem), tiny_tokenizer()
    model.classifier.bias.data.copy_(torch.tensor([4.0, 1.0, -3.0])[:labels])
    theirs: Any = pipeline("text-classification", model=model, tokenizer=tokenizer)
    expected = theirs(TEXTS, top_k=None)
    folder = saved(tmp_path / "folder", model, tokenizer, backend)
    found: Any = hfcompress.load(folder)(TEXTS, top_k=None)
    for ours, row in zip(found, expected, strict=True):
        scores = {item["label"]: item["score"] for item in ours}
        assert scores == pytest.approx({x["label"]: x["score"] for x in row}, abs=0.05)
    done = run_script(folder / "example.py", *TEXTS)
    assert not done.returncode, done.stderr
    printed = [float(line.split()[1]) for line in done.stdout.splitlines()]
    assert printed == pytest.approx([row[0]["score"] for row in found], abs=1e-3)


def test_folders_of_earlier_versions_take_the_config_and_the_usual_tokens(tmp_path: Path) -> None:
    model = tiny_bert(num_labels=3, problem_type="multi_label_classification")
    folder = saved(tmp_path / "folder", model, tiny_tokenizer(), mode="none")
    expected = hfcompress.load(folder).scores(TEXTS)
    manifest = json.loads((folder / "hfcompress.json").read_text())
    del manifest["output"], manifest["digests"]
    for name in ("truncation_side", "pad_type_id", "split_special_tokens", "inputs"):
        del manifest["text"][name]
    (folder / "hfcompress.json").write_text(json.dumps(manifest))
    np.testing.assert_array_equal(hfcompress.load(folder).scores(TEXTS), expected)


def test_refuses_labels_of_another_model(tmp_path: Path) -> None:
    folder = saved(tmp_path / "folder", tiny_bert(), tiny_tokenizer(), mode="none")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"]["2"] = "neutral"
    (folder / "config.json").write_text(json.dumps(config))
    manifest = json.loads((folder / "hfcompress.json").read_text())
    del manifest["digests"]["config.json"]
    (folder / "hfcompress.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"logits of shape \(3, 2\) and config.json names 3"):
        hfcompress.load(folder)(TEXTS)


# --- copies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ENGINES)
def test_copies_give_the_same_scores_and_pickles_need_no_folder(
    backend: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "folder", tiny_bert(), tiny_tokenizer(), backend)
    predictor = hfcompress.load(folder, threads=1, shape=(3, 8))
    expected = predictor(TEXTS)
    made = copy.deepcopy(predictor)
    assert made(TEXTS) == expected
    data = pickle.dumps(predictor)
    for file in folder.iterdir():
        file.unlink()
    again = pickle.loads(data)
    assert again(TEXTS) == pickle.loads(pickle.dumps(again))(TEXTS) == expected


@pytest.mark.parametrize("backend", ENGINES)
def test_quantized_models_can_be_pickled(backend: str) -> None:
    pytest.importorskip(backend)
    batches = text_batches(vocabulary=25)
    made = quantize(tiny_bert(), QuantizationConfig.from_dict({"backend": backend}), batches)
    again = pickle.loads(pickle.dumps(made))
    batch = {name: value for name, value in batches[0].items() if name != "labels"}
    torch.testing.assert_close(again(**batch).logits, made(**batch).logits)
    assert again.to_dict() == made.to_dict()
