"""``check`` tries every verb on copies, and says what works, what is refused and what fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import hfcompress.benchmarking.check as check_module
from hfcompress.benchmarking.check import VerbCheck, check
from hfcompress.cli.commands import main
from hfcompress.errors import ModelError
from hfcompress.models import loading
from hfcompress.models.loading import weights_hash
from hfcompress.utils import Progress
from tests.tiny_images import image_model
from tests.tiny_models import tiny_bert

ENGINES = ["quantize torch", "quantize torchao", "quantize onnxruntime", "quantize openvino"]


@pytest.fixture
def torch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "MODES", {"torch": ("dynamic",)})


def by_verb(model: str | PreTrainedModel) -> dict[str, VerbCheck]:
    return {verb.verb: verb for verb in check(model).verbs}


def test_every_verb_of_a_known_family_works_and_leaves_the_model() -> None:
    model = tiny_bert().train(True)
    before = weights_hash(model)
    found = by_verb(model)
    assert [*found] == ["prune", "shrink", "student", *ENGINES]
    for verb in found.values():
        assert verb.status in {"works", "missing"}, verb
    assert found["prune"].touched.startswith("12 matrices, ")
    assert "by default: bert.pooler.dense, classifier" in found["prune"].left
    assert found["student"].touched == "2 layers to 1"
    assert weights_hash(model) == before
    assert model.training


def test_a_network_of_convolutions_has_no_student(torch_only: None) -> None:
    found = by_verb(image_model("resnet"))
    assert found["prune"].status == found["shrink"].status == "works"
    assert found["student"].status == "refused"
    assert "resnet" in found["student"].reason.lower()


def test_a_verb_whose_result_reloads_differently_fails(
    monkeypatch: pytest.MonkeyPatch, torch_only: None, tmp_path: Path
) -> None:
    real = loading.saved_class

    class Broken:
        @classmethod
        def from_pretrained(cls, folder: str, **options: object) -> PreTrainedModel:
            model = real(Path(folder), tiny_bert()).from_pretrained(folder)
            torch.nn.init.ones_(model.get_parameter("classifier.weight"))
            return model

    monkeypatch.setattr(check_module, "saved_class", lambda *given: Broken)
    report = check(tiny_bert())
    assert [verb.status for verb in report.verbs] == ["fails", "fails", "fails", "works"]
    assert "after reloading, logits differ by" in report.verbs[0].reason
    assert not report.passed


def test_an_unexpected_error_is_a_verb_that_fails(
    monkeypatch: pytest.MonkeyPatch, torch_only: None
) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError("no such kernel\nand a trace")

    monkeypatch.setattr(check_module, "prune", broken)
    (verb, *_) = check(tiny_bert()).verbs
    assert (verb.status, verb.reason) == ("fails", "RuntimeError: no such kernel")


def test_the_command_prints_a_page_and_an_exit_code(
    torch_only: None, model_folder: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert main(["check", str(model_folder)]) == 0
    out = capsys.readouterr().out
    assert "BertForSequenceClassification" in out
    assert "prune" in out
    monkeypatch.setattr(check_module, "_TOLERANCE", -1.0)
    assert main(["check", str(model_folder)]) == 1


def test_refuses_checkpoints_of_other_tasks(tmp_path: Path) -> None:
    from transformers import BertForTokenClassification

    BertForTokenClassification(tiny_bert().config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="token-classification"):
        check(str(tmp_path), Progress())
