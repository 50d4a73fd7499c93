"""`bench` and ``hfcompress bench``: what is timed, what is kept, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

import hfcompress.benchmarking.run as run
import hfcompress.benchmarking.timing as timing
from hfcompress import BenchConfig, QuantizationConfig, bench, quantize
from hfcompress.benchmarking.config import ENGINES, kind_name, runtime_of
from hfcompress.benchmarking.inputs import InputSpec, input_spec, make_inputs
from hfcompress.benchmarking.memory import Memory, measure_memory
from hfcompress.benchmarking.subjects import find_subjects
from hfcompress.cli.commands import main
from hfcompress.errors import ConfigError, MissingExtraError, ModelError, OutputError
from hfcompress.measure.latency import Latency, LatencyReport
from hfcompress.quantization.config import MODES
from hfcompress.quantization.engine import Arrays, Engine
from hfcompress.sweep.results import RunDirectory
from hfcompress.utils import Progress
from tests.tiny_models import text_model, tiny_bert

pytestmark = pytest.mark.usefixtures("shared_exports")

QUICK: dict[str, Any] = {
    "batch": (1, 2), "length": (4,), "threads": (1,), "repeats": 3, "memory": False,
    "engine": ("torch-fp32", "torch-int8"),
}  # fmt: skip


def quick(**options: Any) -> BenchConfig:
    return BenchConfig(**{**QUICK, **options})


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def vit_folder(tmp_path: Path) -> Path:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=16, patch_size=8, num_labels=3,  # type: ignore[call-arg]
    )  # fmt: skip
    folder = tmp_path / "vit"
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


# --- what is timed -----------------------------------------------------------------------------


def test_rows_hold_times_ratios_and_sizes(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []

    def fake(calls: Any, warmup: int, repeats: int, settle: int = 0) -> LatencyReport:
        shape = {call.args[0]["input_ids"].shape for call in calls.values()}
        seen.append((torch.get_num_threads(), *shape))
        times = {name: Latency((2.0 / (place + 1),) * 3) for place, name in enumerate(calls)}
        return LatencyReport(times)

    monkeypatch.setattr(timing, "measure_latency", fake)
    before = torch.get_num_threads()
    result = bench([str(model_folder)], quick(length=(4, 6), threads=(1, 2)))
    assert torch.get_num_threads() == before
    assert set(seen) == {(t, (b, n)) for t in (1, 2) for b in (1, 2) for n in (4, 6)}
    assert len(result.rows) == 16
    dense, eight = result.rows[:2]
    assert (dense["engine"], eight["engine"]) == ("torch-fp32", "torch-int8")
    assert (dense["threads"], dense["batch"], dense["length"]) == (1, 1, 4)
    assert dense["speedup"]["median"] == 1
    assert eight["speedup"]["median"] == eight["same_runtime"]["median"] == 2
    assert (dense["median"], dense["examples_per_second"]) == (2.0, 500.0)
    assert result.rows[4]["batch"] == 2
    assert result.rows[4]["examples_per_second"] == 1000.0
    assert dense["bytes"] == (model_folder / "model.safetensors").stat().st_size
    assert eight["bytes"] < dense["bytes"]
    assert isinstance(result.environment["abilities"], list)


def test_engines_compute_what_the_model_does(model_folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    engines = ("torch-fp32", "torch-bf16", "torch-int8", "onnxruntime-fp32", "onnxruntime-int8")
    notes: list[str] = []
    found = find_subjects(
        [str(model_folder)], quick(engine=engines), notes.append, lambda text: None
    )
    assert not notes
    assert [subject.engine for subject in found] == list(engines)
    arrays = make_inputs(found[0].spec, 3, 7)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.no_grad():
        expected = tiny_bert()(**tensors).logits.numpy()
    for subject in found:
        got = subject.open(1).logits({name: arrays[name] for name in subject.spec.names})
        near = 1e-5 if subject.engine.endswith("fp32") else 0.05
        assert np.abs(got - expected).max() < near, subject.engine
        exact = np.array_equal(got, expected)
        assert not exact or subject.engine.endswith("fp32"), subject.engine


def test_a_quantized_folder_runs_in_its_engine_beside_the_dense_model(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = quantize(tiny_bert(), QuantizationConfig(backend="torch")).save(tmp_path / "small")
    result = bench([str(model_folder), str(folder)], quick(batch=(1,), engine=("torch-fp32",)))
    assert [(row["model"], row["engine"]) for row in result.rows] == [
        ("model", "torch-fp32"),
        ("small", "torch-int8"),
    ]
    assert all(row["same_runtime"]["median"] > 0 for row in result.rows)
    assert all(row["low"] <= row["median"] <= row["high"] for row in result.rows)


def test_images_have_no_length(vit_folder: Path) -> None:
    result = bench(str(vit_folder), quick(length=(4, 9), engine=("torch-fp32", "torch-bf16")))
    assert [(row["batch"], row["length"]) for row in result.rows] == [(1, None)] * 2 + [
        (2, None)
    ] * 2
    assert result.rows[1]["bytes"] < 0.7 * result.rows[0]["bytes"]


def test_inputs_are_what_a_model_takes() -> None:
    spec = input_spec(text_model("roberta").config, ("input_ids", "attention_mask"))
    assert spec.longest == 39  # of 40 positions, those behind the padding id
    assert input_spec(text_model("bert").config, ("input_ids",)).longest == 40
    made = make_inputs(InputSpec(("input_ids", "attention_mask"), 3, 0), 50, 4)
    assert set(np.unique(made["input_ids"])) == {1, 2}
    assert made["attention_mask"].min() == 1
    pixels = make_inputs(InputSpec(("pixel_values",), pixels=(3, 4, 5)), 2, 7)["pixel_values"]
    assert pixels.shape == (2, 3, 4, 5)
    assert pixels.dtype == np.float32


def test_names_of_engines() -> None:
    for name, kind in ENGINES.items():
        if kind.quantization:
            settings = QuantizationConfig.from_dict(kind.quantization)
            assert kind_name(settings.backend, settings.resolved_mode, settings.floats) == name
        assert runtime_of(name) == kind.runtime
    every = {kind_name(backend, mode) for backend, modes in MODES.items() for mode in modes}
    assert len(every) == sum(map(len, MODES.values()))
    assert kind_name("torchao", "weight-only", bits=4) == "torchao-int4 weights"
    assert kind_name("openvino", "static", "auto") == "openvino-int8-bf16"


# --- memory ------------------------------------------------------------------------------------


def test_memory_is_the_peak_of_a_process_without_torch(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    if not Path("/proc/self/status").is_file():
        pytest.skip("needs Linux")
    folder = quantize(text_model()).save(tmp_path / "small")
    (subject,) = find_subjects([str(folder)], quick(), print, print)
    found = measure_memory(subject, [(256, 32), (1, 4)], 1)
    assert isinstance(found, Memory)
    assert list(found.peaks) == [(1, 4), (256, 32)]
    assert found.before < found.peaks[1, 4] < found.peaks[256, 32]
    assert found.before < 200e6  # torch alone would be more
    (folder / "model.onnx").write_bytes(b"broken")
    assert "was not measured: " in str(measure_memory(subject, [(1, 4)], 1))


def test_memory_goes_into_the_rows(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def fake(subject: Any, shapes: Any, threads: int) -> Memory | str:
        asked.append(threads)
        if subject.engine == "torch-int8":
            return "the memory of it was not measured: reason"
        return Memory(10, {shape: 100 * shape[0] for shape in shapes})

    monkeypatch.setattr(run, "measure_memory", fake)
    result = bench(str(model_folder), quick(memory=True, threads=(1, 2)))
    rows = {(row["engine"], row["batch"]): row for row in result.rows}
    assert rows["torch-fp32", 2]["peak_rss"] == 200
    assert rows["torch-fp32", 2]["rss_before"] == 10
    assert "peak_rss" not in rows["torch-int8", 1]
    assert result.notes == ("the memory of it was not measured: reason",)
    assert asked == [2, 2]


# --- what is kept ------------------------------------------------------------------------------


def test_an_interrupted_bench_keeps_its_rows_and_goes_on(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    true = timing._measure

    def cut(point: Any, *rest: Any) -> Any:
        calls.append(point.batch)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return true(point, *rest)

    monkeypatch.setattr(timing, "_measure", cut)
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        bench([str(model_folder)], quick(), output)
    kept = RunDirectory(output).rows()
    assert [row["batch"] for row in kept] == [1, 1]
    result = bench([str(model_folder)], quick(), output)
    assert calls == [1, 2, 2]
    assert [row["batch"] for row in result.rows] == [1, 1, 2, 2]
    assert kept == result.rows[:2]
    data = json.loads((output / "bench.json").read_text())
    assert data["rows"] == result.rows
    assert data["config"]["batch"] == [1, 2]
    assert (output / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert len((output / "bench.csv").read_text().splitlines()) == 5
    # A larger grid adds its points and keeps the others.
    larger = bench([str(model_folder)], quick(batch=(1, 2, 3)), output)
    assert calls == [1, 2, 2, 3]
    assert larger.rows[:4] == result.rows
    with pytest.raises(OutputError, match="contains a bench of other models, engines, rounds"):
        bench([str(model_folder)], quick(engine=("torch-fp32",)), output)


def test_a_quantized_form_is_made_once(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench(str(model_folder), quick(batch=(1,)))

    def refuse(*_: object) -> None:
        raise AssertionError("quantized again")

    monkeypatch.setattr("hfcompress.benchmarking.subjects.quantize", refuse)
    assert len(bench(str(model_folder), quick(batch=(1,))).rows) == 2


def test_the_time_of_a_point_is_bounded(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def fake(calls: Any, warmup: int, repeats: int, settle: int = 0) -> LatencyReport:
        asked.append(repeats)
        return LatencyReport({name: Latency((500.0,)) for name in calls})

    monkeypatch.setattr(timing, "measure_latency", fake)
    for seconds, repeats in ((1.0, 5), (20.0, 10), (1000.0, 40)):  # every call comes twice
        bench(str(model_folder), quick(batch=(1,), repeats=40, seconds=seconds))
        assert asked[-2:] == [1, repeats]


def test_engines_are_compiled_for_each_shape_where_it_is_asked_for(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []

    def noted(engine: Engine, arrays: Arrays) -> Engine:
        asked.append(arrays["input_ids"].shape)
        return engine

    monkeypatch.setattr(timing, "with_static_shape", noted)
    options: dict[str, Any] = {"batch": (1, 2), "length": (4,), "repeats": 3}
    plain = bench(str(model_folder), quick(**options), output=tmp_path / "out")
    assert not asked
    with pytest.raises(OutputError, match="contains a bench of other models"):
        bench(str(model_folder), quick(**options, fixed=True), output=tmp_path / "out")
    shaped = bench(str(model_folder), quick(**options, fixed=True))
    assert set(asked) == {(1, 4), (2, 4)}
    assert len(shaped.rows) == len(plain.rows)


# --- the command line --------------------------------------------------------------------------


def test_the_command_line_shows_a_table(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    command = ["bench", str(model_folder), "--batch", "1,2", "--length", "4", "--threads", "1",
               "--engine", "torch-fp32,torch-int8", "--repeats", "3", "--memory", "false",
               "--output", str(output)]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "torch-int8" in shown
    assert "x torch" in shown
    assert "cores" in shown
    assert (output / "bench.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "0"], "--batch"),
        (["--batch", "two"], "batch"),
        (["--engine", "onnxruntme-int8"], "did you mean 'onnxruntime-int8'"),
        (["--length", "65"], "model takes 64 tokens at most and length asks for 65"),
        (["--output", "FILE"], "is a file; give --output a folder"),
    ],
)
def test_bad_options_are_one_sentence(
    options: list[str],
    message: str,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    given = [str(tmp_path / "file") if item == "FILE" else item for item in options]
    engine = [] if "--engine" in options else ["--engine", "torch-fp32"]
    output = [] if "--output" in options else ["--output", str(tmp_path / "out")]
    assert main(["bench", str(model_folder), *engine, *given, *output]) == 2
    shown = capsys.readouterr().err
    assert message.removeprefix("--") in shown
    assert len(shown.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_engines_that_are_not_installed_are_named_with_their_pip_command(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    told = Notes()
    config = quick(batch=(1,), engine=("torch-fp32", "openvino-int8"))
    result = bench(str(model_folder), config, progress=told)
    assert told.notes == list(result.notes)
    assert told.notes == [
        "openvino-int8 is left out: openvino is not installed; "
        "write: pip install 'hfcompress[openvino]'"
    ]
    with pytest.raises(MissingExtraError, match=r"pip install 'hfcompress\[openvino\]'"):
        bench(str(model_folder), quick(engine=("openvino-int8",)))


def test_a_processor_without_bf16_is_said(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hfcompress.measure.environment.cpu_abilities", dict)
    monkeypatch.setattr("hfcompress.benchmarking.subjects.ENGINES", {
        name: ENGINES[name] for name in ("torch-fp32", "torch-bf16")
    })  # fmt: skip
    notes: list[str] = []
    found = find_subjects([str(model_folder)], quick(engine=None), notes.append, notes.append)
    assert [subject.engine for subject in found] == ["torch-fp32"]
    assert "torch-bf16 is left out: this processor has no bf16 instructions" in notes
    asked = quick(engine=("torch-bf16",))
    (one,) = find_subjects([str(model_folder)], asked, notes.append, notes.append)
    assert one.engine == "torch-bf16"


def test_an_engine_that_refuses_a_model_is_said(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ModelError("the engine cannot; do something else")

    monkeypatch.setattr("hfcompress.benchmarking.subjects.quantize", refuse)
    result = bench(str(model_folder), quick(batch=(1,)))
    assert [row["engine"] for row in result.rows] == ["torch-fp32"]
    assert result.notes == (
        "torch-int8 is left out for model: the engine cannot; do something else",
    )
    with pytest.raises(ModelError, match="no engine can run model"):
        bench(str(model_folder), quick(engine=("torch-int8",)))


def test_what_cannot_be_compared(model_folder: Path, vit_folder: Path) -> None:
    with pytest.raises(ConfigError, match="texts and images cannot be compared"):
        bench([str(model_folder), str(vit_folder)], quick(engine=("torch-fp32",)))
    with pytest.raises(ConfigError, match="the same model is given twice"):
        bench([str(model_folder), str(model_folder)], quick(engine=("torch-fp32",)))
    with pytest.raises(ConfigError, match="no model to time"):
        bench([], quick())


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = []
    for place in ("a", "b"):
        folder = tmp_path / place / "model"
        tiny_bert(seed=ord(place)).save_pretrained(folder)  # no tokenizer is needed
        paths.append(str(folder))
    rows = bench(paths, quick(batch=(1,), engine=("torch-fp32",))).rows
    assert [row["model"] for row in rows] == paths
