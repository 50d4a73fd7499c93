"""Hub names, paths and package files; one line where something is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfcompress.errors import MissingExtraError, SourceError
from hfcompress.models.hub import Source, fingerprint_folder, resolve
from hfcompress.utils import require


def test_hub_name() -> None:
    assert resolve("org/some-model", "model") == Source("org/some-model", "hub", "org/some-model")
    assert resolve("bert-base-uncased", "model").path is None


@pytest.mark.parametrize(
    ("spec", "what", "name", "revision"),
    [
        ("org/model@v1.0", "model", "org/model", "v1.0"),
        ("bert@refs/pr/3", "model", "bert", "refs/pr/3"),
        ("hf://org/model", "model", "org/model", None),
        ("hf://models/org/model@main", "model", "org/model", "main"),
        ("hf://datasets/org/rows@abc", "data", "org/rows", "abc"),
    ],
)
def test_hub_address(spec: str, what: str, name: str, revision: str | None) -> None:
    assert resolve(spec, what) == Source(spec, "hub", name, revision)


def test_local_path(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    found = resolve(str(tmp_path / "m"), "model")
    assert (found.kind, found.path) == ("local", tmp_path / "m")


def test_package_path() -> None:
    found = resolve("pkg://datasets/utils", "data")
    assert found.kind == "package"
    assert found.path is not None
    assert found.path.name == "utils"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pkg://no_such_package/x", "write: pip install no-such-package"),
        ("pkg://datasets/no_such_file", "has no file or folder 'no_such_file'"),
        ("pkg:///x", "write pkg://PACKAGE/PATH"),
        ("pkg://datasets/../torch", "leaves the package"),
        ("pkg://datasets//etc", "leaves the package"),
        ("pkg://datasets/utils/../../torch", "leaves the package"),
        ("./no/such/folder", "there is no file or folder './no/such/folder'"),
        ("data.tsv", "there is no file or folder 'data.tsv'"),
        ("a/b/c", "there is no file or folder"),
        ("", "there is no file or folder"),
        ("hf://models/org/name", "write hf://datasets/ORG/NAME[@REVISION]"),
        ("hf://spaces/org/name", "write hf://datasets/ORG/NAME[@REVISION]"),
    ],
)
def test_what_is_not_there(spec: str, message: str) -> None:
    with pytest.raises(SourceError) as caught:
        resolve(spec, "data")
    assert message in str(caught.value)


def test_a_misspelt_file_is_answered_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("x")
    with pytest.raises(SourceError, match=r"did you mean 'train\.tsv'"):
        resolve(str(tmp_path / "trian.tsv"), "data")


def test_fingerprint_is_content_not_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "README.md").write_text(name)
    first = fingerprint_folder(tmp_path / "a")
    assert first == fingerprint_folder(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text("{ }")
    assert first != fingerprint_folder(tmp_path / "b")


def test_a_missing_extra_names_the_pip_command() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'hfcompress\[onnx\]'"):
        require("no_such_module_at_all", "onnx")
    assert require("json", "onnx").__name__ == "json"
