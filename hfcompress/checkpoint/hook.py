"""Makes transformers know our checkpoints as soon as it is loaded, without loading it.

transformers looks up how to load a checkpoint by the ``quant_method`` in its ``config.json``, in
two tables of ``transformers.quantizers.auto``. Importing hfcompress must stay cheap, so the entry
is made when that module is imported, by whoever imports it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_TABLES = "transformers.quantizers.auto"


def install() -> None:
    """Register now where transformers is loaded already, else when it will be."""
    if _TABLES in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register() -> None:
    # By name: that file imports transformers, which must not happen before it is wanted.
    importlib.import_module("hfcompress.checkpoint.quantizer").register()


class _Finder(MetaPathFinder):
    """Finds one module, the tables, as the other finders do, and wraps its loader."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != _TABLES:
            return None
        sys.meta_path.remove(self)  # its work is done, and the search below must not end here
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


class _ThenRegister(Loader):
    """Loads a module as its own loader does, then registers our method."""

    def __init__(self, inner: Loader) -> None:
        self.inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does."""
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's own code, then register."""
        spec = module.__spec__
        if spec is not None:
            spec.loader = self.inner
        module.__loader__ = self.inner
        self.inner.exec_module(module)
        _register()
