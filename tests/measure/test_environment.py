"""What the processor can do, with every torch that may be installed."""

from __future__ import annotations

import pytest
import torch

from hfcompress.measure.environment import cpu_abilities


def test_abilities_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert cpu_abilities() == {"amx_bf16": True}


def test_an_older_torch_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert cpu_abilities() == {}
