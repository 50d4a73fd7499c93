"""`feasibility`: what a model needs, measured, beside what each profile has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hfcompress.benchmarking.feasibility as module
from hfcompress import QuantizationConfig, feasibility, quantize
from hfcompress.benchmarking.memory import Memory
from hfcompress.cli.commands import main
from hfcompress.measure.macs import count_macs
from hfcompress.measure.profiles import PROFILES, estimated_energy
from hfcompress.quantization.manifest import MANIFEST
from hfcompress.report.feasibility import feasibility_figure
from tests.tiny_models import tiny_bert

MEMORY = 3_000_000


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory worker has tests of its own."""

    def fake(subject: Any, shapes: Any, threads: int) -> Memory:
        return Memory(10, dict.fromkeys(shapes, 10 + MEMORY))

    monkeypatch.setattr(module, "measure_memory", fake)


def test_what_a_checkpoint_needs(model_folder: Path) -> None:
    (found,) = feasibility(str(model_folder), length=8)
    ids = torch.ones(1, 8, dtype=torch.long)
    macs = count_macs(tiny_bert(), {"input_ids": ids, "attention_mask": ids}).total
    assert (found.engine, found.macs, found.memory) == ("torch-fp32", macs, MEMORY)
    assert found.milliseconds > 0
    assert found.energy is not None
    assert found.energy.compute == pytest.approx(macs * 4.6e-12)
    assert found.energy.memory == pytest.approx(found.bytes * 160e-12)
    places = {item.profile: item for item in found.verdicts}
    assert list(places) == [profile.name for profile in PROFILES]
    assert places["server-cpu"].feasible
    assert places["phone"].reasons == ("runs executorch or litert or onnxruntime, not torch",)
    assert any(
        "MB in memory, 0.256 MB at most" in item for item in places["microcontroller"].reasons
    )


def test_a_quantized_folder_runs_in_its_engine(tmp_path: Path) -> None:
    folder = quantize(tiny_bert(), QuantizationConfig(backend="torch")).save(tmp_path / "small")
    (found,) = feasibility(str(folder))
    assert found.engine == "torch-int8"
    ids = torch.ones(1, 32, dtype=torch.long)
    macs = count_macs(tiny_bert(), {"input_ids": ids, "attention_mask": ids}).total
    assert found.energy is not None
    assert found.macs == pytest.approx(macs, abs=1)
    assert 0 < found.energy.compute < macs * 4.6e-12 / 3  # most of it are integers
    assert not found.notes
    (half,) = feasibility(str(folder), length=16)
    assert half.macs == pytest.approx(macs / 2, abs=1)
    assert "in proportion" in half.notes[0]
    manifest = folder / MANIFEST
    fields = json.loads(manifest.read_text())
    del fields["done"]["total_macs"], fields["digests"]
    manifest.write_text(json.dumps(fields))
    (older,) = feasibility(str(folder))
    assert (older.macs, older.energy) == (None, None)
    assert "quantize it again" in older.notes[0]


def test_integers_cost_a_twentieth_of_floats() -> None:
    assert estimated_energy(100, 0, 0).total == pytest.approx(
        20 * estimated_energy(0, 100, 0).total
    )
    assert estimated_energy(0, 0, 4).total == pytest.approx(640e-12)


def test_the_command_prints_draws_and_gives_rows(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "new" / "places.png"
    command = ["feasibility", str(model_folder), "--length", "8", "--picture", str(picture)]
    assert main(command) == 0
    assert "server-cpu" in capsys.readouterr().out
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert main([*command, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["verdicts"]["server-cpu"] == []
    assert main(["feasibility", str(model_folder), "--length", "0"]) == 2
    assert "length" in capsys.readouterr().err
    axes = feasibility_figure([row]).axes[0]
    assert "fits" in [text.get_text() for text in axes.texts]
