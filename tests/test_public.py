"""The public names: all there, all documented, the same for people and for type checkers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from torch import nn

import hfcompress


@pytest.mark.parametrize("name", hfcompress.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    thing = getattr(hfcompress, name)
    if name != "__version__":
        assert thing.__doc__
        assert thing.__module__.startswith("hfcompress.")


def test_type_checkers_see_the_same_names() -> None:
    stub = Path(hfcompress.__file__).with_suffix(".pyi")
    seen = {
        (f"{node.module}".removeprefix("hfcompress."), alias.asname)
        for node in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    table: dict[str, tuple[str, ...]] = vars(hfcompress)["_PUBLIC"]
    listed = {(module, name) for module, names in table.items() for name in names}
    assert seen == {*listed, ("version", "__version__")}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        vars(hfcompress)["__getattr__"]("prun")


def test_former_names_are_kept_for_one_release() -> None:
    from hfcompress.recipe import sweep

    assert sweep.run is hfcompress.run
    model = nn.Sequential(nn.Linear(4, 4))
    metrics = hfcompress.CompressionMetrics(model)
    assert metrics.plain() == metrics.to_dict()
    report = hfcompress.prune(model, hfcompress.PruningConfig(sparsity=0.5, targets=("Linear",)))
    assert report.plain() == report.to_dict()
