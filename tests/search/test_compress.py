"""compress: sizes predicted, candidates in order, rows kept, the model that holds as a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertForSequenceClassification

import hfcompress
from hfcompress.cli.commands import main
from hfcompress.errors import ConfigError, DataError, ModelError, OutputError
from hfcompress.measure.latency import Latency, LatencyReport
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.quantize import quantize
from hfcompress.search import candidates as candidates_module
from hfcompress.search import search as search_module
from hfcompress.search.candidates import candidates
from hfcompress.search.compress import CompressResult, compress
from hfcompress.search.search import meets_target, miss, too_slow
from hfcompress.search.target import CompressTarget
from hfcompress.sweep import timing as timing_module
from hfcompress.sweep import trial as trial_module
from hfcompress.sweep.outcome import perform
from hfcompress.utils import Progress, parse_size, size_text
from tests.tiny_models import shrinkable_model, tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("shared_exports")

SHARED: dict[str, Any] = {"backend": "torch", "latency": {"length": 8}}


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few candidates, two updates of training, and a clock that says what the size says."""
    monkeypatch.setattr(candidates_module, "SHARES", {0.5: 0.6})
    monkeypatch.setattr(candidates_module, "MIN_COUNTS", {})
    distilled = candidates_module._distilled

    def short(*given: Any, **more: Any) -> dict[str, Any]:
        return {**distilled(*given, **more), "max_steps": 2}

    monkeypatch.setattr(candidates_module, "_distilled", short)

    def measured(
        calls: dict[str, Any], warmup: int, repeats: int, *, seconds: float, settle: int
    ) -> LatencyReport:
        times = {"dense": (8.0,), "measured": (2.0,)}
        return LatencyReport({name: Latency(times[name]) for name in calls})

    monkeypatch.setattr(timing_module, "measure_latency", measured)


@pytest.fixture
def search(
    fast: None, model_folder: Path, write_data: Callable[..., Path], tmp_path: Path
) -> Callable[..., CompressResult]:
    data = write_data(rows=60)

    def run(progress: Progress | None = None, **target: Any) -> CompressResult:
        wanted = CompressTarget.from_dict({**SHARED, **target})
        return compress(
            str(model_folder), str(data), wanted, output=tmp_path / "out", progress=progress
        )

    return run


@pytest.mark.parametrize(
    ("text", "size"),
    [("10MB", 10_000_000), ("1.5 MiB", 1_572_864), ("500kb", 500_000), ("7", 7), ("2G", 2 * 10**9)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert CompressTarget.from_dict({"max_size": text}).max_size == size


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"max_size": "ten bananas"}, "cannot parse size 'ten bananas'; use 10MB, 500KB"),
        ({"max_size": "0MB"}, "cannot parse size '0MB'"),
        ({}, "give max_size, speedup or both; there is nothing to search for"),
        ({"speedup": -1}, "speedup should be greater than 0"),
        ({"max_size": "1MB", "max_drop": -1}, "max_drop should be greater than or equal to 0"),
        ({"speedup": 2, "backend": "openvino", "mode": "dynamic"}, "openvino has no mode dynamic"),
    ],
)
def test_targets_that_are_none(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        CompressTarget.from_dict(fields)


def test_what_holds_and_how_far_a_row_is() -> None:
    target = CompressTarget.from_dict({"max_size": "10MB", "max_drop": 1.0, "speedup": 4})
    row = {"bytes": 9_000_000, "drop": 0.01, "timings": [{"speedup": {"median": 4.0}}]}
    assert meets_target(row, target)
    assert miss(row, target) == 0
    assert not meets_target({**row, "bytes": 10_000_001}, target)
    assert not meets_target({**row, "drop": 0.0101}, target)
    assert not meets_target({**row, "timings": [{"speedup": {"median": 3.9}}]}, target)
    assert miss({**row, "drop": 0.03}, target) == pytest.approx(2)
    assert size_text(9_000_000) == "9 MB"
    assert size_text(812_345) == "812 KB"


def test_the_first_that_holds_is_a_folder_that_loads(search: Callable[..., CompressResult]) -> None:
    result = search(max_size="10MB", max_drop=100)
    assert [row["settings"]["candidate"] for row in result.rows] == ["int8"]
    assert result.found == result.nearest == result.rows[0]
    assert result.sentence.startswith("Found: int8 (")
    assert result.model == result.output / "model"
    found: Any = hfcompress.load(result.model)("a good film")
    assert 0 <= found["score"] <= 1
    assert "Measured" in (result.model / "README.md").read_text()
    assert "Candidates" in (result.output / "report.html").read_text()
    recipe = hfcompress.load_recipe(result.output / "recipe.yaml")
    assert recipe.steps[0]["quantize"]["backend"] == "torch"


def test_a_smaller_size_takes_a_smaller_encoder_and_rows_are_kept(
    search: Callable[..., CompressResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = search(max_size="10MB", max_drop=100)
    size = first.rows[0]["bytes"]
    monkeypatch.setattr("hfcompress.search.compress._SLACK", 1e6)
    heard: list[dict[str, Any]] = []

    class Heard(Progress):
        def row(self, row: dict[str, Any]) -> None:
            heard.append(row)

    second = search(Heard(), max_size=size - 1, max_drop=100)
    names = [row["settings"]["candidate"] for row in second.rows]
    assert names == ["int8", "50% of the encoder"]
    assert [row["settings"]["candidate"] for row in heard] == names[1:]  # the other was kept
    assert second.found is not None
    assert second.found["bytes"] < size


def test_what_is_too_slow_before_training_is_not_trained(
    search: Callable[..., CompressResult],
) -> None:
    result = search(speedup=5, max_drop=0)  # the clock says 4
    names = [row["settings"]["candidate"] for row in result.rows]
    assert names == ["int8", "50% of the encoder", "a CNN, 25 tokens"]
    assert result.found is None
    assert result.model is None
    assert result.sentence.startswith(
        "No model of 3 tried has at most a drop of 0 points, 5 times faster at 1 x 8 or more; "
        "the nearest is "
    )


def test_what_is_small_and_weak_is_trained(
    search: Callable[..., CompressResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def weak(row: dict[str, Any], target: CompressTarget) -> bool:
        return "distilled" in row["settings"]["candidate"]

    monkeypatch.setattr(search_module, "meets_target", weak)
    result = search(max_size="10MB")
    assert result.found is not None
    assert result.found["settings"]["candidate"] == "50% of the encoder, distilled"
    steps = [done["step"] for done in result.found["steps"]]
    assert steps == ["shrink", "distill", "quantize"]


class Notes(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_what_is_no_smaller_than_something_too_slow_is_left_out(
    search: Callable[..., CompressResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates_module, "MIN_COUNTS", {2: 0.1, 9: 0.2})
    monkeypatch.setattr(candidates_module, "count_kept", lambda *given: {2: 20, 9: 12})
    heard = Notes()
    result = search(heard, speedup=5, max_drop=0)  # the clock says 4
    names = [row["settings"]["candidate"] for row in result.rows]
    assert names == ["int8", "50% of the encoder", "a CNN, 25 tokens"]
    assert "int8, 20 tokens is left out: 100% of the encoder is too slow" in heard.notes
    assert "50% of the encoder, 12 tokens is left out: 50% of the encoder is too slow" in (
        heard.notes
    )


def test_a_speed_in_doubt_is_timed_again_and_longer(
    search: Callable[..., CompressResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def busy(
        calls: dict[str, Any], warmup: int, repeats: int, *, seconds: float, settle: int
    ) -> LatencyReport:
        asked.append(seconds)
        quiet, dense = (2.0,) * 9, (8.0,) * 9
        mine = quiet if seconds else (9.0,) * 6 + quiet[:3]  # two thirds of the rounds suffer
        return LatencyReport({"dense": Latency(dense), "measured": Latency(mine)})

    monkeypatch.setattr(timing_module, "measure_latency", busy)
    result = search(speedup=4, max_drop=100)
    assert asked == [0.0, search_module._AGAIN]
    assert result.found is not None
    assert result.found["settings"]["candidate"] == "int8"
    assert result.found["timings"][0]["speedup"]["median"] == 4.0
    assert result.found["latency"] == {"dense": 8.0, "measured": 2.0}


@pytest.mark.parametrize(
    ("lost", "names"),
    [
        (0.015, ["int8", "int8, finer int8"]),  # half a point too much
        (0.03, ["int8", "50% of the encoder", "50% of the encoder, distilled"]),
    ],
)
def test_finer_int8_is_tried_where_it_could_make_the_difference(
    search: Callable[..., CompressResult],
    monkeypatch: pytest.MonkeyPatch,
    lost: float,
    names: list[str],
) -> None:
    pytest.importorskip("onnxruntime")

    def performed(*given: Any) -> Any:
        outcome = perform(*given)
        assert outcome.row is not None
        finer = "finer" in outcome.row["settings"]["candidate"]
        outcome.row["drop"] = 0.0 if finer else lost
        return outcome

    def in_torch(model: Any, config: Any, calibration: Any) -> Any:
        return quantize(model, QuantizationConfig(backend="torch"), calibration)

    # What is tried next depends on the loss alone, and an export takes longer than all the rest.
    monkeypatch.setattr("hfcompress.steps.quantize.quantize", in_torch)
    monkeypatch.setattr("hfcompress.search.search.perform", performed)
    monkeypatch.setattr(candidates_module, "_students", lambda *given: [])
    result = search(backend="onnxruntime", max_size="10MB", max_drop=1)
    assert [row["settings"]["candidate"] for row in result.rows] == names
    assert [row["index"] for row in result.rows] == list(range(len(names)))
    last = hfcompress.load_recipe(result.output / "recipe.yaml") if result.found else None
    assert last is None or last.steps[-1]["quantize"]["per_token"] is True
    assert (result.found is not None) is (len(names) == 2)


def test_too_slow_is_what_most_rounds_say() -> None:
    target = CompressTarget.from_dict({"speedup": 8})
    for high, slow in ((7.9, True), (8.0, False)):
        row = {"timings": [{"speedup": {"median": 3.0, "low": 2.0, "high": high}}]}
        assert too_slow(row, target) is slow
    assert not too_slow(row, CompressTarget.from_dict({"max_size": "1MB"}))


def test_vocabularies_share_the_shrunk_and_the_trained_encoder(
    search: Callable[..., CompressResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates_module, "MIN_COUNTS", {2: 0.1})
    monkeypatch.setattr(candidates_module, "count_kept", lambda *given: {2: 20})
    monkeypatch.setattr(trial_module, "KEEP_AFTER", 0.0)
    monkeypatch.setattr(search_module, "meets_target", lambda row, target: False)
    # No time for any training but the first: the second is not one.
    times = iter([0.0])
    monkeypatch.setattr(search_module, "_seconds_per_row", lambda search: next(times))
    heard = Notes()
    result = search(heard, max_size="10MB", minutes=60)
    names = [row["settings"]["candidate"] for row in result.rows]
    halves = [name for name in names if name.startswith("50%")]
    assert [name.count("tokens") for name in halves] == [0, 0, 1, 1]
    assert "distill: kept from an earlier trial" in heard.notes
    assert "shrink: kept from an earlier trial" in heard.notes
    assert not any("earlier run" in note for note in heard.notes)
    trained = [row for row in result.rows if row["settings"]["candidate"] in halves[1::2]]
    assert [[did["step"] for did in row["steps"]] for row in trained] == [
        ["shrink", "distill", "quantize"],
        ["shrink", "distill", "vocabulary", "quantize"],
    ]


def test_minutes_go_on_for_less_and_begin_nothing_that_is_too_long(
    search: Callable[..., CompressResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates_module, "_GRAPH", 0)  # tiny models are all graph
    monkeypatch.setattr(candidates_module, "_GRAPH_LAYER", 0)
    notes: list[str] = []

    class Heard(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    result = search(Heard(), max_size="10MB", max_drop=100, minutes=1)
    assert len(result.rows) > 1
    assert result.found is not None
    assert result.found["bytes"] == min(row["bytes"] for row in result.rows)
    monkeypatch.setattr(search_module, "_seconds_per_row", lambda search: 1e6)
    monkeypatch.setattr(search_module, "meets_target", lambda row, target: False)
    again = search(Heard(), max_size="9MB", metric="f1", minutes=0.5)
    assert not any("distill" in row["settings"]["candidate"] for row in again.rows)
    assert any("training would take about" in note for note in notes)


def test_impossible_and_missing(
    search: Callable[..., CompressResult], model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="max_size 1 KB is below what this model can become: the"):
        search(max_size="1KB")
    target = CompressTarget.from_dict({"max_size": "1MB"})
    with pytest.raises(DataError, match=r"give data \(--data FOLDER\)"):
        compress(str(model_folder), None, target)
    with pytest.raises(ModelError, match="a model needs its processor"):
        compress(tiny_bert(), "data", target, output=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_folder_of_another_search_is_refused(
    search: Callable[..., CompressResult], write_data: Callable[..., Path], tmp_path: Path
) -> None:
    search(max_size="10MB", max_drop=100)
    other = tiny_bert(seed=1)
    with pytest.raises(
        OutputError, match="contains results of another model, other data or a recipe"
    ):
        compress(
            other,
            str(write_data(rows=60)),
            CompressTarget.from_dict({**SHARED, "max_size": "9MB"}),
            processor=tiny_tokenizer(), output=tmp_path / "out",
        )  # fmt: skip


def test_the_command_line(
    fast: None,
    model_folder: Path,
    write_data: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["compress", str(model_folder), "--backend", "torch", "--length", "8"]
    more = ["--data", str(write_data(rows=60)), "--output", str(tmp_path / "out")]
    setting = ["--set", "max_eval=9"]
    found = [*setting, "--max-size", "10MB", "--max-drop", "100", "--fixed"]
    assert main([*command, *more, *found]) == 0
    shown = capsys.readouterr().out
    assert "shape=(1, 8)" in shown
    assert "Found: int8" in shown
    assert "hfcompress predict" in shown
    never = [*setting, "--max-size", "10MB", "--speedup", "99", "--max-drop", "0"]
    assert main([*command, *more, *never]) == 1
    assert "the nearest is" in capsys.readouterr().out
    assert main([*command, *more, "--max-size", "huge"]) == 2
    assert main([*command, "--max-size", "10MB"]) == 2
    assert main([*command, *more, "--max-size", "10MB", "--set", "max_train"]) == 2
    assert main([*command, *more, "--max-size", "10MB", "--set", "nme=sst2"]) == 2
    errors = capsys.readouterr().err
    assert "'max_train': write KEY=VALUE with a field of the data" in errors
    assert "data has no field 'nme'; did you mean 'name'?" in errors
    assert "cannot parse size 'huge'" in errors
    assert "give data (--data FOLDER)" in errors


@pytest.mark.parametrize(
    ("least", "names"),
    [
        (2, ["shrink", "distill", "vocabulary", "quantize"]),
        (5, ["shrink", "vocabulary", "distill", "quantize"]),
    ],
)
def test_a_student_learns_without_the_tokens_that_are_not_rare(
    least: int,
    names: list[str],
    model_folder: Path,
    write_data: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hfcompress.search.compress import _experiment
    from hfcompress.sweep.cache import StepCache

    monkeypatch.setattr(candidates_module, "MIN_COUNTS", {least: 0.1})
    monkeypatch.setattr(candidates_module, "count_kept", lambda *given: {least: 20})
    target = CompressTarget.from_dict({**SHARED, "max_size": "1MB"})
    data, task = str(write_data(rows=60)), "text-classification"
    bench = _experiment(str(model_folder), data, target, None, task, 0, Progress(), StepCache())
    trained = [one.trained for one in candidates(bench, target) if one.trained and "20" in one.name]
    assert trained
    assert all([next(iter(step)) for step in steps] == names for steps in trained)


def test_predicted_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from hfcompress.search.candidates import _predicted

    config = BertConfig(
        vocab_size=12_000, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=512,
    )  # fmt: skip
    model = BertForSequenceClassification(config).train(False)
    target = CompressTarget.from_dict({"max_size": "1MB"})
    made = quantize(model, QuantizationConfig.from_dict(target.quantization))
    assert made.bytes == pytest.approx(_predicted(model, 12_000, 1.0, target), rel=0.05)
    half = _predicted(model, 6_000, 0.5, target)
    encoder = 2 * (4 * 128 * 128 + 2 * 128 * 512 + 128 * 4 + 512 + 128)
    removed = 6_000 * 128 + encoder / 2
    assert _predicted(model, 12_000, 1.0, target) - half == pytest.approx(removed, rel=1e-3)


def test_candidates_come_in_order_of_expected_loss(
    model_folder: Path, write_data: Callable[..., Path]
) -> None:
    from hfcompress.search.compress import _experiment
    from hfcompress.sweep.cache import StepCache

    target = CompressTarget.from_dict({**SHARED, "max_size": "1MB"})
    data = str(write_data(rows=60))
    task = "text-classification"
    bench = _experiment(str(model_folder), data, target, None, task, 0, Progress(), StepCache())
    found = candidates(bench, target)
    assert found[0].name == "int8"
    assert [one.loss for one in found] == sorted(one.loss for one in found)
    assert "a CNN" in found[-1].name
    assert {one.share for one in found} == {1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.0}


@pytest.mark.parametrize("family", ["vit", "deit"])
def test_sizes_of_image_models_are_predicted_too(family: str) -> None:
    from hfcompress.search.candidates import _predicted

    model = shrinkable_model(family)
    target = CompressTarget.from_dict({"max_size": "1MB", "backend": "torch"})
    whole = _predicted(model, 0, 1.0, target)
    assert 0 < whole < hfcompress.calculate_model_size(model) + 1_000_000
    assert _predicted(model, 0, 0.5, target) <= whole


def test_a_search_killed_before_its_last_note_has_each_row_once(
    search: Callable[..., CompressResult],
) -> None:
    first = search(max_size="10MB", max_drop=100)
    lines = (first.output / "results.jsonl").read_text()
    (first.output / "measured.json").unlink()
    again = search(max_size="10MB", max_drop=100)
    assert again.measured == first.measured
    assert (first.output / "results.jsonl").read_text() == lines
