"""Every recipe of ``recipes/`` ends in the sentence that its second line expects, in two seconds.

The first line of each says where it comes from.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hfcompress.cli.commands import main

RECIPES = sorted((Path(__file__).parent / "recipes").glob("*.yaml"))
FIRST = ("# Origin: ", "# Expected: ")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_hostile_recipe_is_refused_in_one_sentence(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    heads = path.read_text(encoding="utf-8").splitlines()[:2]
    assert [head.startswith(start) for head, start in zip(heads, FIRST, strict=True)] == [True] * 2
    started = time.process_time()
    assert main(["validate", str(path)]) == 2
    assert time.process_time() - started < 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert heads[1].removeprefix(FIRST[1]) in printed.err
    assert printed.err.isprintable() or printed.err[:-1].isprintable()
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []
