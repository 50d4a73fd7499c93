from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hfcompress.errors import OutputError
from hfcompress.utils import atomic_write


def test_text_and_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    path = atomic_write(tmp_path / "new" / "a.txt", "é\r\nb\n")
    assert path.read_bytes() == "é\r\nb\n".encode()
    assert atomic_write(path, b"\x00").read_bytes() == b"\x00"
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_failed_rename_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = atomic_write(tmp_path / "a.txt", "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match=r"a\.txt cannot be written \(No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_where_a_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="writable folder"):
        atomic_write(tmp_path / "file" / "a.txt", "x")


def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("x")
    written = atomic_write(tmp_path / "written", "x")
    mode = stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    assert stat.S_IMODE(written.stat().st_mode) == mode
