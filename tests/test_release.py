"""What `make dist` checks of a wheel and an sdist."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

import release


def made(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def test_the_versions_of_this_repository_agree() -> None:
    assert release.versions_apart(release.ROOT) == []


def test_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, "hfcompress/a.py", "hfcompress/recipes/b.yaml", "hfcompress/__pycache__/c.pyc")
    for name, text in (
        ("pyproject.toml", 'version = "1.0"'), ("hfcompress/version.py", '__version__ = "1.0"'),
        ("CITATION.cff", "version: 1.0"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(release, "ROOT", tmp_path)
    folder = tmp_path / "dist"
    assert release.main(str(folder)) == 2
    folder.mkdir()
    with zipfile.ZipFile(folder / "x.whl", "w") as wheel:
        for name in ("hfcompress/a.py", "hfcompress/version.py", "x.dist-info/licenses/LICENSE"):
            wheel.writestr(name, "x")
    with tarfile.open(folder / "x.tar.gz", "w:gz") as sdist:
        sdist.add(tmp_path / "hfcompress", "x-1.0/hfcompress")
    capsys.readouterr()
    assert release.main(str(folder)) == 1
    assert capsys.readouterr().out.splitlines() == [
        "x.whl lacks hfcompress/recipes/b.yaml", "x.tar.gz lacks LICENSE",
    ]  # fmt: skip
    (tmp_path / "CITATION.cff").write_text("version: 1.1")
    assert "CITATION.cff 1.1" in release.versions_apart(tmp_path)[0]
