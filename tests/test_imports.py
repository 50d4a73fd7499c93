"""Imports point one way; optional packages are never imported at the top of a module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hfcompress"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Who may be imported by whom: a module may import rooms to its left, and its own room.
LAYERS: list[set[str]] = [
    {"errors", "files", "extras", "config", "quiet"},
    {"pure"},
    {"architectures", "sources", "sublayers", "surgery", "forward"},
    {
        "models",
        "text_config",
        "text_models",
        "data",
        "encode",
        "predict",
        "predict_checked",
        "measure",
        "images",
        "encode_images",
        "augment_images",
        "new_models",
        "processors",
    },
    {"pruning", "distillation", "quantization", "checkpoint", "vocabulary", "sparse"},
    {"report"},
    {"recipe"},
    {"benchmark"},
    {"cli", "cli_arguments"},
]
PURE = {
    "pruning.scores", "pruning.masks", "pruning.patterns", "pruning.reconstruct",
    "pruning.schedule", "pruning.movement", "distillation.losses", "distillation.augment",
    "distillation.state_losses", "distillation.outputs", "distillation.layer_map",
    "distillation.schedule", "quantization.affine",
    "distillation.divergences", "distillation.batch", "distillation.casts",
}  # fmt: skip
# Rooms that meet only in the recipe.
STRANGERS = {"pruning", "distillation", "quantization"}
OPTIONAL = {"onnx", "onnxruntime", "onnxscript", "openvino", "nncf", "torchao", "torch_pruning",
            "ray", "trackio", "timm", "PIL", "sklearn", "llvmlite"}  # fmt: skip


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def layer(module: str) -> int:
    if module in PURE:
        return 1
    room = module.split(".")[0]
    found = [index for index, rooms in enumerate(LAYERS) if room in rooms]
    assert found, f"{module} stands in no layer; add its room to LAYERS"
    return found[0]


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p)], ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    here = name_of(path)
    for target in imports(path):
        if not target.startswith("hfcompress."):
            continue
        there = target.removeprefix("hfcompress.")
        assert layer(there) <= layer(here), f"{here} imports {there}, which is above it"
        rooms = {here.split(".")[0], there.split(".")[0]}
        assert not (len(rooms) == 2 and rooms <= STRANGERS), f"{here} knows {there}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_optional_packages_are_imported_where_used(path: Path) -> None:
    heads = {target.split(".")[0] for target in imports(path, top_level_only=True)}
    assert not heads & OPTIONAL


@pytest.mark.parametrize(
    "path", [p for p in MODULES if name_of(p).startswith("report")], ids=name_of
)
def test_report_reads_rows_not_models(path: Path) -> None:
    heads = {target.split(".")[0] for target in imports(path)}
    assert not heads & {"torch", "transformers", "datasets"}


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_files_know_torch_only(name: str) -> None:
    path = PACKAGE / f"{name.replace('.', '/')}.py"
    if not path.exists():
        pytest.skip("not written yet")
    foreign = {target.split(".")[0] for target in imports(path)} - set(sys.stdlib_module_names)
    assert foreign <= {"torch", "hfcompress", "numpy", "typing_extensions"}


def test_the_package_imports_without_torch_being_asked_for() -> None:
    """The command line answers --version without loading torch."""
    code = "import sys, hfcompress.cli.commands; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"


def test_only_the_command_line_prints() -> None:
    for path in MODULES:
        if name_of(path) == "cli":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), path
