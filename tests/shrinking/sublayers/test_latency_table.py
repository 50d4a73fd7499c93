from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hfcompress.calibration.batches import Calibration
from hfcompress.errors import ConfigError
from hfcompress.models.sublayers import sublayers
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.latency import timed, timed_inputs
from hfcompress.shrinking.shrink import shrink
from hfcompress.shrinking.sublayers import latency_table as timing
from hfcompress.shrinking.sublayers.latency_table import TimeTable, time_table, with_widths
from tests.tiny_models import logits, shrinkable_batches, shrinkable_model


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_SECONDS", 0.05)


def test_a_table_adds_up() -> None:
    table = TimeTable(10.0, 2, {"heads": {0: 6.0, 2: 8.0, 4: 10.0}, "neurons": {0: 7.0, 8: 10.0}})
    assert table.cost("heads", 4) == 2.0
    assert table.cost("heads", 1) == 0.5
    assert table.cost("neurons", 4) == 0.75
    assert table.empty == pytest.approx(10 - 2 * 2.0 - 2 * 1.5)


def test_a_table_is_timed_once_for_a_machine_a_shape_and_a_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HFCOMPRESS_CACHE", str(tmp_path))
    model = shrinkable_model("bert")
    inputs = timed_inputs(Calibration(shrinkable_batches("bert")), 1, 8)

    def table(model: Any = model, inputs: Any = inputs, **config: Any) -> TimeTable:
        return time_table(model, sublayers(model), inputs, ShrinkConfig(speedup=2, **config))

    first = table()
    assert table() == first
    assert len(list((tmp_path / "latency").iterdir())) == 1
    assert "host" not in next((tmp_path / "latency").iterdir()).read_text()
    table(inputs=timed_inputs(Calibration(shrinkable_batches("bert")), 2, 8))
    table(precision="bfloat16")
    table(with_widths(model, sublayers(model), {sublayers(model)[1].name: 8}))
    assert len(list((tmp_path / "latency").iterdir())) == 4


def test_narrow_copies_leave_the_model_alone() -> None:
    model, batch = shrinkable_model("bert"), shrinkable_batches("bert")[0]
    before = logits(model, batch)
    parts = sublayers(model)
    narrow: Any = with_widths(model, parts, {part.name: 2 for part in parts})
    assert [part.units(narrow) for part in parts] == [2] * 6
    assert (
        narrow.bert.embeddings.word_embeddings.weight
        is model.bert.embeddings.word_embeddings.weight
    )
    timed({"narrow": narrow}, timed_inputs(Calibration([batch]), 1, 4), "bfloat16", 0.01)
    assert torch.equal(logits(model, batch), before)
    assert narrow.bert.embeddings.word_embeddings.weight.dtype == torch.float32


def test_timed_inputs_have_the_size_that_is_asked_for() -> None:
    inputs = timed_inputs(Calibration(shrinkable_batches("bert")), 6, 12)
    assert {name: tuple(t.shape) for name, t in inputs.items()} == {
        "input_ids": (6, 12), "attention_mask": (6, 12)
    }  # fmt: skip
    assert bool(inputs["attention_mask"].all())
    images = timed_inputs(Calibration(shrinkable_batches("vit")), 3, 5)
    assert tuple(images["pixel_values"].shape) == (3, 3, 16, 16)


def test_the_clock_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths follow a clock on which a head costs 4 ms and a neuron 0.1 ms in each layer."""

    def clock(models: dict[str, Any], *_: Any, **__: Any) -> Any:
        from hfcompress.measure.latency import Latency, LatencyReport

        times = {}
        for name, model in models.items():
            cost = {"heads": 4.0, "neurons": 0.1}
            ms = 5.0 + sum(cost[part.kind] * part.units(model) for part in sublayers(model))
            times[name] = Latency((ms,))
        return LatencyReport(times)

    monkeypatch.setattr(timing, "timed", clock)
    monkeypatch.setattr("hfcompress.shrinking.latency.timed", clock)
    dense = 5.0 + 3 * (4 * 4.0 + 48 * 0.1)
    for wish in ({"speedup": 2.0}, {"latency": dense / 2}):
        model = shrinkable_model("bert")
        config = ShrinkConfig(**wish, batch_size=3, length=7)  # type: ignore[arg-type]
        report = shrink(model, config, Calibration(shrinkable_batches("bert")))
        assert report.latency is not None
        assert report.latency.dense == pytest.approx(dense)
        assert report.latency.measured == pytest.approx(dense / 2, rel=0.05)
        assert report.latency.predicted == pytest.approx(report.latency.measured)
        assert "predicted" in str(report)
    slow = ShrinkConfig(latency=4.0)
    with pytest.raises(ConfigError, match=r"4 ms is below .* the least is 5"):
        shrink(shrinkable_model("bert"), slow, Calibration(shrinkable_batches("bert")))
