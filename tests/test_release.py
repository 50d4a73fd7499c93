"""What `make dist` checks of a wheel and an sdist."""

from __future__ import annotations

import ast
import re
import sys
import tarfile
import tomllib
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


def test_floors_are_the_lowest_versions_that_are_allowed() -> None:
    text = (release.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = tomllib.loads(text)["project"]["dependencies"]
    found = release.floors(text)
    assert [one.replace("==", ">=") for one in found] == [one.split(",")[0] for one in declared]


def test_everything_that_is_imported_is_declared() -> None:
    project = tomllib.loads((release.ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for extra in extras.values() for one in extra)]
    declared = {re.split(r"[^\w.-]", one)[0].lower().replace("-", "_") for one in wanted}
    packages = {"pyyaml": "yaml", "pillow": "PIL"}  # a package that is imported by another name
    known = {packages.get(name, name) for name in declared}
    # Parts of jinja2, pydantic and onnxscript, which are declared.
    known |= {"markupsafe", "pydantic_core", "onnx_ir", "hfcompress"}
    for path in (release.ROOT / "hfcompress").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                found = isinstance(node, ast.ImportFrom) and not node.level
                names = [str(node.module)] if found else []  # type: ignore[attr-defined]
            used = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
            assert used <= known, f"{path.name}: {used - known} is not in pyproject.toml"


def test_the_page_of_a_package_index_needs_no_file_beside_it(tmp_path: Path) -> None:
    release.write_source(release.ROOT, tmp_path / "source")
    shown = (tmp_path / "source" / "README.md").read_text(encoding="utf-8")
    assert not re.findall(r"\]\((?!https?:|#)", shown)
    assert (tmp_path / "source" / "hfcompress" / "recipes" / "shipped" / "ner.yaml").is_file()
    text = "![a curve](docs/a.png) [more](docs/b.md#c), [site](https://x.org), [below](#d)"
    assert release.standalone(text, None) == " more, [site](https://x.org), [below](#d)"
    assert release.standalone(text, "https://host/us/") == (
        "![a curve](https://host/us/raw/HEAD/docs/a.png) "
        "[more](https://host/us/blob/HEAD/docs/b.md#c), [site](https://x.org), [below](#d)"
    )


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
    assert release.check(str(folder)) == 2
    folder.mkdir()
    with zipfile.ZipFile(folder / "x.whl", "w") as wheel:
        for name in ("hfcompress/a.py", "hfcompress/version.py", "x.dist-info/licenses/LICENSE"):
            wheel.writestr(name, "x")
    with tarfile.open(folder / "x.tar.gz", "w:gz") as sdist:
        sdist.add(tmp_path / "hfcompress", "x-1.0/hfcompress")
    capsys.readouterr()
    assert release.check(str(folder)) == 1
    assert capsys.readouterr().out.splitlines() == [
        "x.whl lacks hfcompress/recipes/b.yaml", "x.tar.gz lacks LICENSE",
    ]  # fmt: skip
    (tmp_path / "CITATION.cff").write_text("version: 1.1")
    assert "CITATION.cff 1.1" in release.versions_apart(tmp_path)[0]
