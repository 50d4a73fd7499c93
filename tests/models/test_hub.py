"""Hub names, paths and package files; one line where something is not there."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

from hfcompress.errors import MissingExtraError, SourceError
from hfcompress.models.hub import Source, fingerprint_folder, hub_errors, hub_reachable, resolve
from hfcompress.utils import require


def test_hub_name() -> None:
    assert resolve("org/some-model", "model") == Source("org/some-model", "hub", "org/some-model")
    assert resolve("bert-base-uncased", "model").path is None


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


def test_offline_is_not_reachable() -> None:
    assert not hub_reachable()


def test_an_unreachable_hub_is_one_line_and_the_switch_is_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import AutoConfig

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    source = resolve("no-org/no-model", "model")
    with (
        pytest.raises(SourceError, match="cannot be reached") as caught,
        hub_errors(source, "model", "--set model=FOLDER"),
    ):
        AutoConfig.from_pretrained(source.location)
    assert "\n" not in str(caught.value)
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine"), hub_errors(resolve(str(tmp_path), "x"), "x", "y"):
        raise OSError("mine")
    with pytest.raises(KeyError), hub_errors(resolve("org/name", "x"), "x", "y"):
        raise KeyError("mine")


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
