"""Imports point one way; optional packages are never imported at the top of a module."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hfcompress"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A room may import the rooms of the lines above its own, and modules of its own.
LAYERS: list[set[str]] = [
    {"errors", "version"},
    {"config", "utils"},
    {"storage"},
    {"models", "measure", "report"},
    {"data", "layers"},
    {"inference"},
    {"tasks"},
    {"training"},
    {"distillation", "checkpoint"},
    {"calibration", "quantization"},
    {"pruning", "shrinking"},
    {"recipes", "plots"},
    {"steps"},
    {"sweep"},
    {"search", "benchmarking", "recipe"},
    {"cli"},
]
# Rooms that meet only in the steps.
APART = {"pruning", "distillation", "quantization"}
# Arithmetic on tensors: these files know torch alone.
PURE = {
    "calibration.linalg", "pruning.scores", "pruning.masks", "pruning.patterns",
    "pruning.reconstruction", "pruning.schedule", "distillation.losses",
    "distillation.text_augmentation", "distillation.layer_losses",
    "distillation.teacher_outputs", "distillation.layer_map", "distillation.schedule",
    "distillation.cached_casts", "layers.affine",
    "training.hard_loss", "training.shares",
}  # fmt: skip
OPTIONAL = {"onnx", "onnxruntime", "onnxscript", "openvino", "nncf", "torchao", "torch_pruning",
            "executorch", "litert_torch", "ai_edge_litert", "ai_edge_quantizer",
            "coremltools", "ray", "trackio", "timm", "PIL", "sklearn", "llvmlite"}  # fmt: skip


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    tree = parsed(path)
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def layer(module: str) -> int:
    room = module.split(".")[0]
    found = [index for index, rooms in enumerate(LAYERS) if room in rooms]
    assert found, f"{module} is in no layer; add its room to LAYERS"
    return found[0]


def problem(here: str, there: str) -> str | None:
    """Why one module may not import another; None where it may."""
    room, other = here.split(".")[0], there.split(".")[0]
    if room == other:
        return None
    if {room, other} <= APART:
        return f"{here} imports {there}; {room} and {other} meet in steps"
    if layer(there) >= layer(here):
        return f"{here} imports {there}, which is not in a layer above it"
    return None


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p)], ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    here = name_of(path)
    for target in imports(path):
        assert target != "hfcompress", f"{here} imports the package's own public names"
        if target.startswith("hfcompress."):
            found = problem(here, target.removeprefix("hfcompress."))
            assert found is None, found


def test_the_layers_refuse_what_they_should() -> None:
    assert problem("report.page", "measure.size")
    assert problem("models.loading", "sweep.run")
    assert problem("quantization.quantize", "distillation.trainer")
    assert problem("pruning.prune", "calibration.batches") is None


def test_every_room_of_the_layers_exists() -> None:
    rooms = {name_of(path).split(".")[0] for path in MODULES} - {""}
    assert rooms == {room for rooms in LAYERS for room in rooms}


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
    foreign = {target.split(".")[0] for target in imports(path)} - set(sys.stdlib_module_names)
    assert foreign <= {"torch", "hfcompress", "numpy", "typing_extensions"}


def loaded_after(steps: list[str], watched: set[str]) -> list[set[str]]:
    """Which of the watched packages a fresh process has loaded after each of some statements."""
    code = "import sys\nfound = []\n"
    for step in steps:
        code += f"try:\n    {step}\nexcept SystemExit:\n    pass\n"
        code += f"found.append(sorted({watched!r} & sys.modules.keys()))\n"
    code += "print(repr(found), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return [set(names) for names in ast.literal_eval(done.stderr.strip().splitlines()[-1])]


SLOW = {"transformers", "datasets", "evaluate", "scipy", "pandas", "optimum", "accelerate"}


def test_help_version_and_the_list_of_recipes_load_no_models() -> None:
    run = "from hfcompress.cli.commands import main; main"
    steps = ["import hfcompress", *(f"{run}([{word!r}])" for word in ("--help", "--version"))]
    steps += [f"{run}(['recipes'])", f"{run}(['bench', '--help'])"]
    loaded = loaded_after(steps, {*SLOW, "torch", "numpy", "pydantic", "rich"})
    assert loaded == [set(), set(), set(), {"rich"}, {"rich", "pydantic"}]


def test_pruning_and_shrinking_import_torch_without_transformers() -> None:
    names = ["PruningConfig", "ShrinkConfig", "prune", "shrink", "QuantizationConfig"]
    loaded = loaded_after([f"from hfcompress import {name}" for name in names], SLOW)
    assert loaded == [set()] * len(names)


def test_only_the_command_line_prints() -> None:
    for path in MODULES:
        if name_of(path).startswith("cli."):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), path
