"""Temporary folders: gone with their process, or when the next one starts."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hfcompress.storage.temporary import (
    remove_left_roots,
    remove_leftovers,
    replace_folder,
    temporary_folder,
    temporary_root,
    written_beside,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")


def killed_in(body: Callable[[], object]) -> None:
    """Run a body in a forked process that then gets SIGKILL."""
    child = os.fork()
    if not child:
        try:
            body()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_a_folder_that_a_killed_process_wrote_goes_when_it_is_written_again(
    tmp_path: Path,
) -> None:
    target = tmp_path / "model [1]"

    def half() -> None:
        with written_beside(target) as temporary:
            (temporary / "weights").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    killed_in(half)
    assert len(list(tmp_path.iterdir())) == 1
    with written_beside(target) as other:
        assert list(tmp_path.iterdir()) == [other]
        (other / "weights").write_text("whole")
        replace_folder(other, target)
    assert list(tmp_path.iterdir()) == [target]
    assert (target / "weights").read_text() == "whole"


def test_a_folder_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    with written_beside(tmp_path / "model") as first, written_beside(tmp_path / "model") as second:
        remove_leftovers(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([first, second])


def test_a_replaced_folder_gets_its_name_back_where_the_new_one_did_not_come(
    tmp_path: Path,
) -> None:
    old = tmp_path / ".model.0123.old"
    old.mkdir()
    remove_leftovers(tmp_path, "other")
    assert old.is_dir()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    old.mkdir()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_files_go_only_where_the_caller_has_locked_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".report.html.0123.tmp").write_text("half")
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    remove_leftovers(tmp_path, files=True)
    assert not list(tmp_path.iterdir())


def test_the_root_of_a_killed_process_goes_and_that_of_a_live_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = temporary_folder()
    killed_in(temporary_folder)
    assert len(list(tmp_path.iterdir())) == 2  # a forked process makes its own
    remove_left_roots()
    assert list(tmp_path.iterdir()) == [Path(temporary_root())] == [mine.parent]
