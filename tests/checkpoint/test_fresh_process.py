"""A process that has never seen the model loads it, hfcompress imported first or last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from hfcompress.checkpoint.record import METHOD
from tests.fresh_process import run_together
from tests.tiny_models import (
    SHRINKABLE,
    logits,
    shrinkable_batches,
    uneven_model,
    uneven_model_without_a_layer,
)

SCRIPT = Path(__file__).with_name("load_in_fresh_process.py")
Answers = dict[str, list[list[float]]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Answers]:
    """Folders of shrunk models of every family with inputs, and the logits of each."""
    root = tmp_path_factory.mktemp("saved")
    folders, answers = [], {}
    for model_type in SHRINKABLE:
        model = (
            uneven_model_without_a_layer(model_type)
            if model_type != "bert"
            else uneven_model(model_type)
        )
        folder = root / model_type
        model.save_pretrained(folder)
        batch = shrinkable_batches(model_type)[0]
        del batch["labels"]
        save_file(batch, folder / "inputs.safetensors")
        folders.append(folder)
        answers[model_type] = logits(model, batch).double().tolist()
    return folders, answers


def run(order: str, folders: list[Path]) -> tuple[Answers, str]:
    """What the script prints, and its log."""
    (done,) = run_together(SCRIPT, order, *map(str, folders), environments=[{}])
    assert done.returncode == 0, done.stderr[-2000:]
    answers: Answers = json.loads(done.stdout)
    return answers, done.stderr


def test_every_family_loads_with_hfcompress_imported_first(
    saved: tuple[list[Path], Answers],
) -> None:
    folders, answers = saved
    found, _ = run("hfcompress first", folders)
    assert found == answers


def test_transformers_imported_first_says_what_to_install_and_then_loads(
    saved: tuple[list[Path], Answers],
) -> None:
    folders, answers = saved
    found, log = run("transformers first", folders[:2])
    assert found == {folder.name: answers[folder.name] for folder in folders[:2]}
    assert "refused without hfcompress" in log
    assert "pip install hfcompress" in METHOD
    assert f"Unknown quantization type, got {METHOD}" in log
