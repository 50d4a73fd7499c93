"""Makes transformers know our checkpoints as soon as it is loaded, without loading it.

transformers looks up how to load a checkpoint by the ``quant_method`` in its ``config.json``, in
two tables of ``transformers.quantizers.auto``, and which config and which class by its
``model_type``, in those of ``transformers.models.auto``. Importing hfcompress must stay cheap, so
the entries are made when these modules are imported, by whoever imports them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Module of transformers -> our module whose `register` makes the entries. Named, not imported:
# ours import transformers, which takes seconds.
REGISTRARS = {
    "transformers.quantizers.auto": "hfcompress.checkpoint.hf_quantizer",
    "transformers.models.auto.configuration_auto": "hfcompress.models.configuration_text",
    "transformers.models.auto.modeling_auto": "hfcompress.models.modeling_text",
}


def install() -> None:
    """Register now if transformers is imported already, else right after it is imported."""
    waiting = {finder.awaited for finder in sys.meta_path if isinstance(finder, _Finder)}
    for awaited in REGISTRARS:
        if awaited in sys.modules:
            _register(awaited)
        elif awaited not in waiting:
            sys.meta_path.insert(0, _Finder(awaited))


def _register(awaited: str) -> None:
    ours = importlib.import_module(REGISTRARS[awaited])
    # If our own module triggered this import it is half initialised and calls `register` itself.
    register = getattr(ours, "register", None)
    if register is not None:
        register()


class _Finder(MetaPathFinder):
    """Finds one module as the other finders do, and wraps its loader."""

    def __init__(self, awaited: str) -> None:
        self.awaited = awaited

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != self.awaited:
            return None
        sys.meta_path.remove(self)  # else `find_spec` below would call this method again
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


class _ThenRegister(Loader):
    """Loads a module as its own loader does, then makes our entries."""

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
        _register(module.__name__)
