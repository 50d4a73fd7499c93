"""Registering with transformers, now or when it is imported."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
from transformers.quantizers import auto

from hfcompress.checkpoint import hook
from hfcompress.checkpoint.hf_quantizer import CompressedConfig, CompressedLoader, register
from hfcompress.checkpoint.record import METHOD
from tests.fresh_process import run_fresh


def test_the_tables_know_our_method() -> None:
    assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] is CompressedConfig
    assert auto.AUTO_QUANTIZER_MAPPING[METHOD] is CompressedLoader


def test_registering_twice_is_harmless() -> None:
    register()
    hook.install()
    assert auto.AUTO_QUANTIZER_MAPPING[METHOD] is CompressedLoader


def test_the_module_is_found_once_as_the_others_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The finder waits for one module, leaves everything else alone, and goes when it is done."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    calls: list[str] = []
    monkeypatch.setattr(hook, "REGISTRARS", {"hfcompress.errors": "ours"})
    monkeypatch.setattr(hook, "_register", calls.append)
    monkeypatch.delitem(sys.modules, "hfcompress.errors")
    hook.install()
    hook.install()
    waiting = [finder for finder in sys.meta_path if isinstance(finder, hook._Finder)]
    assert len(waiting) == 1
    assert waiting[0].find_spec("json", None) is None
    found = importlib.import_module("hfcompress.errors")
    assert calls == ["hfcompress.errors"]
    assert found.BadInputError.exit_code == 2
    assert isinstance(found, ModuleType)
    assert isinstance(found.__spec__, ModuleSpec)
    assert not isinstance(found.__loader__, hook._ThenRegister)
    assert not any(isinstance(finder, hook._Finder) for finder in sys.meta_path)


@pytest.mark.parametrize(
    "name", ["models.configuration_text", "models.modeling_text", "checkpoint.hf_quantizer"]
)
def test_our_modules_may_be_imported_before_transformers(name: str) -> None:
    code = (
        f"import hfcompress.{name}\n"
        "from transformers import AutoConfig, AutoModelForSequenceClassification\n"
        "from transformers.quantizers import auto\n"
        f"assert {METHOD!r} in auto.AUTO_QUANTIZER_MAPPING\n"
        "assert AutoConfig.for_model('hfcompress-text').encoder == 'cnn'\n"
    )
    run_fresh(code)


@pytest.mark.parametrize(
    "first", ["import hfcompress, transformers", "import transformers, hfcompress"]
)
def test_the_config_alone_is_known_before_any_model_class_is_loaded(first: str) -> None:
    code = (
        f"{first}\nimport sys\n"
        "config = transformers.AutoConfig.for_model('hfcompress-text')\n"
        "assert type(config).__name__ == 'TextConfig'\n"
        "assert 'hfcompress.models.modeling_text' not in sys.modules\n"
    )
    run_fresh(code)
