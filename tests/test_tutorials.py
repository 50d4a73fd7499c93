"""The notebooks of docs/tutorials run from top to bottom, on few rows and for one epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from benchmarks.tables import ROOT

TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.ipynb"))
SHORT = "EPOCHS, ROWS = 1, 192"


def cells(path: Path) -> list[dict[str, Any]]:
    """The cells, as the notebook format has them."""
    found = json.loads(path.read_text(encoding="utf-8"))
    assert (found["nbformat"], found["metadata"]["kernelspec"]["name"]) == (4, "python3")
    return list(found["cells"])


def test_there_is_one_for_each_part() -> None:
    assert [path.stem for path in TUTORIALS] == [
        "distillation", "pipeline", "pruning", "quantization",
    ]  # fmt: skip
    for path in TUTORIALS:
        for cell in cells(path):
            assert not cell.get("outputs"), f"{path.name} holds outputs; clear them"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    parameters = 0
    for cell in cells(path):
        if cell["cell_type"] != "code":
            continue
        text = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", []):
            exec(text, names)
            text, parameters = SHORT, parameters + 1
        *_, last = text.rstrip().splitlines()
        exec(compile(text, str(path), "exec"), names)
        if last.startswith("plots."):
            assert isinstance(eval(last, names), Figure)
    assert parameters == 1
