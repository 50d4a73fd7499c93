"""The Python examples of README.md run, from top to bottom, on a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_readme import README, blocks_of
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import FILLER, GOOD, tiny_tokenizer


@pytest.fixture
def readme_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_data: Callable[..., Path]
) -> None:
    """The files that the examples name: a model, texts, a data set and a recipe."""
    monkeypatch.chdir(tmp_path)
    tiny_bert(num_hidden_layers=4).save_pretrained("FOLDER")
    tiny_tokenizer().save_pretrained("FOLDER")
    words = [*GOOD, *FILLER]
    lines = [f"{words[i % 15]} {words[i % 7]} {words[i % 4]}" for i in range(512)]
    Path("texts.txt").write_text("\n".join(lines))
    write_data("sst2/train.tsv", rows=96)
    write_data("sst2/dev.tsv", rows=24, seed=1)
    Path("recipe.yaml").write_text(blocks_of(README, "yaml")[0])


@pytest.mark.usefixtures("readme_files", "shared_exports")
@pytest.mark.filterwarnings("ignore")
def test_the_examples_run_from_top_to_bottom() -> None:
    pytest.importorskip("onnxruntime")
    names: dict[str, Any] = {}
    for text in blocks_of(README, "python"):
        if "CompressTarget" in text:  # a search takes long; tests/search runs it
            continue
        exec(compile(text, "README.md", "exec"), names)
    assert 0.7 < names["report"].actual < 0.9
    assert len(names["result"].rows) == 10
    assert (Path("sentiment") / "example.py").is_file()
    assert (Path("runs") / "mine" / "report.html").is_file()
