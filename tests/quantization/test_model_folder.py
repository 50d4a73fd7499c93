"""The deployable folder: written whole, used by a fresh process, by its example, by predict."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, pipeline

import hfcompress
from hfcompress.cli.commands import main
from hfcompress.errors import DataError, MissingExtraError, ModelError, OutputError
from hfcompress.quantization.backends.onnxruntime import OnnxEngine
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.model import QuantizedModel
from hfcompress.quantization.quantize import quantize
from tests.fresh_process import run_fresh
from tests.quantization.use_folder import IDS, MASK
from tests.tiny_models import text_batches, tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

ROOT = Path(__file__).parents[2]
BACKENDS = ("torch", "torchao", "onnxruntime", "openvino")
pytestmark = pytest.mark.usefixtures("shared_exports")


def bert() -> Any:
    model = tiny_bert()
    model.config.id2label = {0: "bad", 1: "good"}
    return model


def make(backend: str = "torch", **options: Any) -> QuantizedModel:
    pytest.importorskip(backend)  # each is called what its package is
    config = QuantizationConfig.from_dict({"backend": backend, **options})
    return quantize(bert(), config, text_batches(vocabulary=25))


def in_fresh_process(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, check=False, timeout=120, env=environment, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_fresh_process_gets_the_same_logits_bit_for_bit_from_every_backend(
    tmp_path: Path,
) -> None:
    expected = {}
    for backend in filter(importlib.util.find_spec, BACKENDS):
        made = make(backend)
        folder = made.save(tmp_path / backend, tiny_tokenizer())
        found = made.engine.logits({"input_ids": IDS, "attention_mask": MASK})
        expected[str(folder)] = found.astype(np.float64).tolist()
    said = json.loads(run_fresh(Path(__file__).with_name("use_folder.py"), *expected))
    assert {folder: answer["logits"] for folder, answer in said.items()} == expected
    for answer in said.values():
        assert {row["label"] for row in answer["classified"]} <= {"good", "bad"}
        assert all(0.5 <= row["score"] <= 1 for row in answer["classified"])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_example_runs_with_the_engine_and_tokenizers_alone(
    backend: str, tmp_path: Path
) -> None:
    folder = make(backend).save(tmp_path / "folder", tiny_tokenizer())
    blocked = (
        "import sys, runpy; sys.modules.update(torch=None, transformers=None, hfcompress=None)"
    )
    run = f"{blocked}; sys.argv = ['example.py', 'a good film', 'dull']; "
    run += f"runpy.run_path({str(folder / 'example.py')!r}, run_name='__main__')"
    lines = in_fresh_process("-c", run).splitlines()
    found: Any = hfcompress.load(folder)(["a good film", "dull"])
    assert [line.split()[0] for line in lines] == [row["label"] for row in found]
    assert [float(line.split()[1]) for line in lines] == pytest.approx(
        [row["score"] for row in found], abs=1e-3
    )


def test_predictions_are_those_of_a_pipeline(tmp_path: Path) -> None:
    folder = make("torch").save(tmp_path / "folder", tiny_tokenizer())
    classify = hfcompress.load(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    theirs = pipeline("text-classification", model=model, tokenizer=tiny_tokenizer(), device="cpu")
    texts = ["a good film", "the plot is weak", "music"]
    assert classify(texts) == [
        {"label": row["label"], "score": pytest.approx(row["score"], abs=1e-6)}
        for row in theirs(texts, batch_size=3)
    ]
    one: Any = classify("a good film", top_k=None)
    assert [row["label"] for row in one] in (["good", "bad"], ["bad", "good"])
    assert sum(row["score"] for row in one) == pytest.approx(1)
    assert np.array_equal(classify.scores(texts, batch_size=3), classify.scores(texts))
    pair: Any = classify([("a good film", "a dull plot")])
    assert pair[0]["score"] != one[0]["score"]


def test_predict_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make("torch").save(tmp_path / "folder", tiny_tokenizer())
    assert main(["predict", str(folder), "a good film", "dull"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].split()[0] in ("good", "bad")
    assert lines[0].endswith("a good film")


def test_the_folder_has_every_file_and_the_report(tmp_path: Path) -> None:
    made = make("torch")
    folder = made.save(tmp_path / "folder", tiny_tokenizer())
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "config.json", "hfcompress.json", "README.md",
            "example.py"} <= names  # fmt: skip
    assert (folder / "model.safetensors").stat().st_size == made.bytes
    manifest = json.loads((folder / "hfcompress.json").read_text())
    assert manifest["done"]["share_of_macs"] == made.coverage.share_of_macs
    card = (folder / "README.md").read_text()
    assert "norms and single parameters stay in floating point" in card
    made.save(folder, tiny_tokenizer(), card="mine")  # a second time, over the first
    assert (folder / "README.md").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_save_that_fails_half_way_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make("torch")
    folder = made.save(tmp_path / "folder", tiny_tokenizer())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(made.engine), "write", full)
    with pytest.raises(OutputError, match="cannot be written \\(No space left on device\\)"):
        made.save(folder, tiny_tokenizer())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(OutputError):
        made.save(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


# --- bad input ---------------------------------------------------------------------------------


def test_refuses_to_load_or_overwrite_other_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a quantized model: it has no readable hfcomp"):
        hfcompress.load(tmp_path)
    with pytest.raises(ModelError, match="is not a folder of a quantized model"):
        hfcompress.load(tmp_path / "nowhere")
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="contains something else"):
        make("torch").save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def damaged(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((folder / name).read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))


def test_refuses_a_folder_of_another_format_backend_or_without_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make("torch").save(tmp_path / "folder", tiny_tokenizer())
    damaged(folder, "hfcompress.json", lambda data: data.update(format=2))
    with pytest.raises(ModelError, match="has the format 2; upgrade hfcompress"):
        hfcompress.load(folder)
    damaged(folder, "hfcompress.json", lambda data: data.update(format=1, backend="onnxruntme"))
    with pytest.raises(ModelError, match="did you mean 'onnxruntime'"):
        hfcompress.load(folder)
    damaged(folder, "hfcompress.json", lambda data: data.update(backend="openvino"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hfcompress\[openvino\]'"):
        hfcompress.load(folder)
    damaged(folder, "config.json", lambda data: data.pop("id2label"))
    with pytest.raises(ModelError, match=r"config.json names no labels; write id2label"):
        hfcompress.load(folder)


def without(*names: str) -> Callable[[dict[str, Any]], object]:
    return lambda data: [data.pop(name) for name in names]


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("config.json", without("quantization_config"), "weight' has another shape in the"),
        ("config.json", lambda data: data["quantization_config"]["int8"].remove("classifier"),
         "config.json builds no tensor for 'classifier.weight_scale'"),
        ("config.json", lambda data: data["quantization_config"].update(int8=[]), "the tensor '"),
        ("config.json", lambda data: data.update(num_hidden_layers=3), "is missing, which config"),
        ("config.json", lambda data: data.update(num_hidden_layers=1), "does not exist in Bert"),
        ("config.json", lambda data: data.update(vocab_size=26), "has the shape .25, 32. and"),
        ("config.json", lambda data: data.update(model_type="unheard-of"), "cannot be loaded"),
        ("hfcompress.json", without("inputs"), "is damaged: inputs: field required"),
        ("hfcompress.json", without("done"), "is damaged: done: field required"),
        ("hfcompress.json", without("quantization"), "is damaged: quantization: field required"),
        ("hfcompress.json", lambda data: data.update(inputs="ids"), "is damaged: inputs: input"),
        ("hfcompress.json", lambda data: data.update(inputs=["speech"]), "its record names speech"),
        ("hfcompress.json", lambda data: data["text"].pop("pad_id"), "is damaged: text.pad_id"),
        ("hfcompress.json", lambda data: data.update(output="poem"), "is damaged: output"),
    ],
)  # fmt: skip
def test_refuses_a_damaged_record(
    name: str, change: Callable[[dict[str, Any]], object], problem: str, tmp_path: Path
) -> None:
    folder = make("torch").save(tmp_path / "folder", tiny_tokenizer())
    damaged(folder, name, change)
    with pytest.raises(ModelError, match=problem):
        hfcompress.load(folder)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_refuses_model_files_that_are_cut_missing_or_of_another_model(
    backend: str, tmp_path: Path
) -> None:
    folder = make(backend).save(tmp_path / "folder", tiny_tokenizer())
    names = {"onnxruntime": ["model.onnx"], "openvino": ["model.bin", "model.xml"]}
    for name in names.get(backend, ["model.safetensors"]):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-100])
        with pytest.raises(ModelError, match=r"is damaged or mixed|cannot be read"):
            hfcompress.load(folder)
        (folder / name).unlink()
        with pytest.raises(ModelError, match=r"is damaged or mixed|cannot be loaded"):
            hfcompress.load(folder)
        (folder / name).write_bytes(whole)
    hfcompress.load(folder)


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_no_code_of_a_folder_runs_and_nothing_is_asked(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(backend).save(tmp_path / "folder", tiny_tokenizer())
    own = {"AutoConfig": "own.C", "AutoModelForSequenceClassification": "own.M"}
    damaged(folder, "config.json", lambda data: data.update(model_type="own", auto_map=own))
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(
        f"open({str(ran)!r}, 'w')\n"
        "from transformers import BertConfig as C, BertForSequenceClassification as M\n"
    )
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    if backend == "torch":
        with pytest.raises(ModelError, match="names code of its own; hfcompress runs no code"):
            hfcompress.load(folder)
        assert main(["predict", str(folder), "good"]) == 2
    else:
        with pytest.raises(ModelError, match=r"config\.json .*differs from what was saved"):
            hfcompress.load(folder)
        damaged(folder, "hfcompress.json", lambda data: data["digests"].pop("config.json"))
        hfcompress.load(folder)("good")
    assert not ran.exists()


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    made = make("torch")
    folder = made.save(tmp_path / "folder", tiny_tokenizer())
    (folder / "model.safetensors").unlink()
    torch.save(made.engine.model.state_dict(), folder / "pytorch_model.bin")  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="cannot be loaded"):
        hfcompress.load(folder)


def test_a_folder_without_a_tokenizer_gives_logits_alone(tmp_path: Path) -> None:
    made = make("torch")
    classify = hfcompress.load(made.save(tmp_path / "folder"))
    assert not (tmp_path / "folder" / "example.py").exists()
    assert np.array_equal(
        classify.logits({"input_ids": IDS, "attention_mask": MASK}),
        made.engine.logits({"input_ids": IDS, "attention_mask": MASK}),
    )
    with pytest.raises(DataError, match="has no tokenizer or image processor"):
        classify("a good film")
    with pytest.raises(DataError, match="attention_mask; input_ids is missing"):
        classify.logits({"attention_mask": MASK})


def test_refuses_an_empty_list_of_texts(tmp_path: Path) -> None:
    folder = make("torch").save(tmp_path / "folder", tiny_tokenizer())
    with pytest.raises(DataError, match="nothing to classify"):
        hfcompress.load(folder)([])


def test_refuses_an_onnx_file_with_other_inputs(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    given = helper.make_tensor_value_info("speech", onnx.TensorProto.FLOAT, ["batch", 3])
    taken = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3])
    node = helper.make_node("Identity", ["speech"], ["logits"])
    graph = helper.make_graph([node], "other", [given], [taken])
    opset = [helper.make_opsetid("", 20)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))
    with pytest.raises(ModelError, match=r"model.onnx reads speech; a classifier reads input_ids"):
        OnnxEngine(path)
    path.write_bytes(b"no graph")
    with pytest.raises(ModelError, match="ONNX Runtime cannot load"):
        OnnxEngine(path)
