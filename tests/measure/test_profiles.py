"""Deployment profiles: limits, what a model would need, and what the command line says of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from hfcompress.cli.commands import main
from hfcompress.errors import ConfigError
from hfcompress.measure.profiles import (
    MEGABYTE,
    PROFILES,
    estimated_int8_bytes,
    find_profile,
    fits_of_bytes,
    fits_of_model,
    profiles,
)
from hfcompress.measure.size import calculate_model_size
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.quantize import quantize
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import tiny_tokenizer


def test_the_profiles_are_named_and_ordered() -> None:
    assert list(profiles()) == [profile.name for profile in PROFILES]
    limits = [profile.max_bytes for profile in PROFILES]
    assert limits == sorted(set(limits))
    assert profiles()["phone"].max_bytes == 10 * MEGABYTE
    assert profiles()["microcontroller"].max_bytes == MEGABYTE
    assert find_profile("phone") is profiles()["phone"]
    with pytest.raises(ConfigError, match="no deployment profile 'fone'; did you mean 'phone'"):
        find_profile("fone")


def test_a_limit_is_not_part_of_its_profile() -> None:
    phone = find_profile("phone")
    assert phone.fits(10 * MEGABYTE - 1)
    assert not phone.fits(10 * MEGABYTE)


def test_the_int8_estimate_counts_each_weight_once() -> None:
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50), nn.LayerNorm(50))
    weights = 50 * 8 + 8 * 50
    scales = 4 * (1 + 50)
    assert estimated_int8_bytes(model) == calculate_model_size(model) - 3 * weights + scales
    tied: nn.Linear = model[1]  # type: ignore[assignment]
    tied.weight = model[0].weight  # type: ignore[assignment]
    assert estimated_int8_bytes(model) == calculate_model_size(model) - 3 * 50 * 8 + 4


def test_what_a_model_needs_for_each_profile() -> None:
    # 4 bytes each: 8 MB, and 2 MB in int8.
    found = {fit.profile.name: fit for fit in fits_of_model(nn.Linear(2000, 1000))}
    assert (found["phone"].fp32, found["phone"].needs) == (True, "")
    small = found["microcontroller"]
    assert (small.fp32, small.int8) == (False, False)
    assert small.needs == "int8 and 2.0 times smaller: 1.0 M parameters or fewer"
    larger = {fit.profile.name: fit for fit in fits_of_model(nn.Linear(2000, 2000))}["phone"]
    assert (larger.fp32, larger.int8, larger.needs) == (False, True, "int8: 4.0 MB")


def test_a_quantized_model_fits_or_needs_less() -> None:
    found = {fit.profile.name: fit for fit in fits_of_bytes(22 * MEGABYTE)}
    assert (found["phone"].fp32, found["phone"].int8) == (None, False)
    assert found["phone"].needs == "2.2 times smaller"
    assert found["browser"].int8
    assert found["browser"].needs == ""


def test_the_estimate_is_near_the_file_that_is_made() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from transformers import BertConfig, BertForSequenceClassification

    settings = BertConfig(
        hidden_size=256, num_hidden_layers=1, num_attention_heads=4, vocab_size=9000
    )
    model = BertForSequenceClassification(settings).train(False)
    file = quantize(model).bytes
    assert 0 < file - estimated_int8_bytes(model) < 0.1 * MEGABYTE
    assert estimated_int8_bytes(tiny_bert()) < calculate_model_size(tiny_bert())


def test_inspect_says_which_profiles_a_model_fits(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(model_folder), "--profiles"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in profiles())
    assert "layers with weights" not in shown
    small = quantize(tiny_bert(), QuantizationConfig(backend="torch"))
    folder = small.save(tmp_path / "small", tiny_tokenizer())
    assert main(["inspect", str(folder), "--profiles"]) == 0
    shown = capsys.readouterr().out
    assert f"{small.bytes:,}" in shown
    assert "torch, dynamic" in shown
    assert "microcontroller" in shown
    assert main(["inspect", str(folder)]) == 0
    assert "microcontroller" not in capsys.readouterr().out
