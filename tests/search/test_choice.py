"""Candidates are chosen on rows of their own; the measured rows are looked at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hfcompress.search.candidates as candidates_module
import hfcompress.search.choice as choice_module
import hfcompress.search.compress as compress_module
from hfcompress.data.config import DataConfig
from hfcompress.data.load import hold_out, load_examples
from hfcompress.errors import ConfigError, DataError
from hfcompress.search.choice import Measured
from hfcompress.search.compress import CompressResult, compress
from hfcompress.search.target import CompressTarget
from hfcompress.utils import Progress

pytestmark = pytest.mark.usefixtures("shared_exports")


class Heard(Progress):
    """Keeps stages and notes."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def stage(self, text: str) -> None:
        self.heard.append(text)

    def note(self, text: str) -> None:
        self.heard.append(text)


@pytest.fixture
def search(
    model_folder: Path,
    write_data: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., CompressResult]:
    monkeypatch.setattr(candidates_module, "SHARES", {})
    monkeypatch.setattr(candidates_module, "MIN_COUNTS", {})
    data = write_data(rows=100)

    def run(progress: Progress | None = None, **fields: Any) -> CompressResult:
        shared = {"backend": "torch", "latency": {"length": 8}, "max_size": "10MB"}
        target = CompressTarget.from_dict({**shared, "max_drop": 90, **fields})
        config = DataConfig(path=str(data), eval_fraction=0.3, choose=0.25)
        return compress(
            str(model_folder), config, target, output=tmp_path / "out", progress=progress
        )

    return run


def test_rows_to_choose_on_are_neither_trained_on_nor_measured(
    write_data: Callable[..., Path],
) -> None:
    config = DataConfig(path=str(write_data(rows=100)), eval_fraction=0.3, choose=0.25)
    whole = load_examples(config, "text", need_train=True)
    found = hold_out(whole, config)
    assert whole.train is not None
    assert found.train is not None
    assert found.choose is not None
    assert (len(found.train), len(found.choose), len(found.eval)) == (52, 18, 30)
    parts = [list(rows["sentence"]) for rows in (found.train, found.choose)]
    assert sorted(parts[0] + parts[1]) == sorted(whole.train["sentence"])
    assert found.eval is whole.eval
    assert set(found.choose["label"]) == {0, 1}
    assert hold_out(whole, config.replace(choose=None)) is whole


def test_refuses_rows_to_choose_on_where_nothing_is_trained(
    write_data: Callable[..., Path],
) -> None:
    config = DataConfig(path=str(write_data(rows=100)), choose=0.25)
    with pytest.raises(DataError, match="nothing reads a training side; leave it out"):
        hold_out(load_examples(config, "text", need_train=False), config)


def test_the_chosen_model_alone_sees_the_measured_rows(
    search: Callable[..., CompressResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = choice_module.measure_once

    def counted(experiment: Any, *given: Any) -> Measured:
        calls.append(len(experiment.eval))
        return real(experiment, *given)

    monkeypatch.setattr(compress_module, "measure_once", counted)
    heard = Heard()
    result = search(heard, confidence=0.95)
    assert result.found is not None
    assert result.measured is not None
    assert (result.found["n"], result.measured.quality.n) == (18, 30)
    assert calls == [30]
    assert any("candidates are chosen on 18 rows of the training side" in x for x in heard.heard)
    sure = result.measured.certificate
    assert sure is not None
    assert sure.n == 30
    assert sure.sentence in result.sentence
    assert result.model is not None
    card = (result.model / "README.md").read_text(encoding="utf-8")
    assert f"{100 * result.measured.quality.value:.1f}" in card
    page = (result.output / "report.html").read_text(encoding="utf-8")
    assert "int8, on the measured rows" in page
    again = search(confidence=0.95)
    assert calls == [30]  # the same search does not look again
    assert again.measured == result.measured
    kept = json.loads((result.output / "measured.json").read_text(encoding="utf-8"))
    assert kept["measured"]["quality"]["n"] == 30


def test_without_a_confidence_the_sentence_has_both_losses(
    search: Callable[..., CompressResult],
) -> None:
    result = search()
    assert "points lost on 18 rows to choose on" in result.sentence
    assert "points lost on the 30 measured rows" in result.sentence


def test_nothing_found_looks_at_no_measured_row(
    search: Callable[..., CompressResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any) -> Measured:
        raise AssertionError("measured")

    monkeypatch.setattr(compress_module, "measure_once", refuse)
    monkeypatch.setattr("hfcompress.search.search.meets_target", lambda *given: False)
    result = search()
    assert result.measured is None
    assert result.model is None


def test_refuses_a_confidence_of_other_metrics() -> None:
    with pytest.raises(ConfigError, match="exact bound for accuracy, not for f1"):
        CompressTarget.from_dict({"max_size": "1MB", "confidence": 0.95, "metric": "f1"})


def test_a_loss_on_the_measured_rows_beyond_the_target_is_said(
    search: Callable[..., CompressResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = choice_module.measure_once

    def worse(*given: Any) -> Measured:
        found = real(*given)
        return Measured(replace(found.quality, drop=0.95), found.certificate)

    monkeypatch.setattr(compress_module, "measure_once", worse)
    result = search()
    assert result.measured is not None
    assert not result.measured.holds(90)
    assert result.measured.holds(95)
    assert "95.0 points lost on the 30 measured rows, more than asked" in result.sentence
