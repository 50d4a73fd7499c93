"""``check`` tries every verb on copies, and says what works, what is refused and what fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import hfcompress.benchmarking.check as check_module
from hfcompress.benchmarking.check import VerbCheck, check
from hfcompress.cli.commands import main
from hfcompress.errors import ConfigError, ModelError
from hfcompress.models import loading
from hfcompress.models.loading import weights_hash
from hfcompress.quantization.config import RUN_HERE
from hfcompress.utils import Progress
from tests.tiny_images import image_model
from tests.tiny_models import tiny_bert

ENGINES = ["quantize torch", "quantize torchao", "quantize onnxruntime", "quantize openvino",
           "quantize executorch", "quantize litert"]  # fmt: skip


TORCH = ("torch",)


def by_verb(model: str | PreTrainedModel, engines: tuple[str, ...] = TORCH) -> dict[str, VerbCheck]:
    return {verb.verb: verb for verb in check(model, engines=engines).verbs}


@pytest.mark.usefixtures("shared_exports")
def test_every_verb_of_a_known_family_works_and_leaves_the_model() -> None:
    model = tiny_bert().train(True)
    before = weights_hash(model)
    found = by_verb(model, RUN_HERE)
    assert [*found] == ["prune", "shrink", "student", *ENGINES]
    for verb in found.values():
        assert verb.status in {"works", "missing"}, verb
    assert found["prune"].touched.startswith("12 matrices, ")
    assert "by default: bert.pooler.dense, classifier" in found["prune"].left
    assert found["student"].touched == "2 layers to 1"
    assert weights_hash(model) == before
    assert model.training


def test_a_network_of_convolutions_has_no_student() -> None:
    found = by_verb(image_model("resnet"))
    assert found["prune"].status == found["shrink"].status == "works"
    assert found["student"].status == "refused"
    assert "resnet" in found["student"].reason.lower()


def test_a_verb_whose_result_reloads_differently_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    real = loading.saved_class

    class Broken:
        @classmethod
        def from_pretrained(cls, folder: str, **options: object) -> PreTrainedModel:
            model = real(Path(folder), tiny_bert()).from_pretrained(folder)
            torch.nn.init.ones_(model.get_parameter("classifier.weight"))
            return model

    monkeypatch.setattr(check_module, "saved_class", lambda *given: Broken)
    report = check(tiny_bert(), engines=TORCH)
    assert [verb.status for verb in report.verbs] == ["fails", "fails", "fails", "works"]
    assert "after reloading, logits differ by" in report.verbs[0].reason
    assert not report.passed


def test_an_unexpected_error_is_a_verb_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError("no such kernel\nand a trace")

    monkeypatch.setattr(check_module, "prune", broken)
    (verb, *_) = check(tiny_bert(), engines=()).verbs
    assert (verb.status, verb.reason) == ("fails", "RuntimeError: no such kernel")


def test_the_command_prints_a_page_and_an_exit_code(
    model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = check_module._dry_runs
    monkeypatch.setattr(
        check_module, "_dry_runs", lambda model, engines, progress: real(model, TORCH, progress)
    )
    assert main(["check", str(model_folder)]) == 0
    out = capsys.readouterr().out
    assert "BertForSequenceClassification" in out
    assert "prune" in out
    monkeypatch.setattr(check_module, "_TOLERANCE", -1.0)
    assert main(["check", str(model_folder)]) == 1


def test_says_the_sizes_that_the_config_names() -> None:
    report = check(tiny_bert(), engines=())
    assert report.architecture == (
        "BertForSequenceClassification, bert, 2 layers, 4 heads, 32 wide"
    )
    assert check(image_model("convnext"), engines=()).architecture.endswith(", convnext")


def test_refuses_an_unknown_engine() -> None:
    with pytest.raises(ConfigError, match="unknown engine 'onnx'"):
        check(tiny_bert(), engines=["onnx"])
    with pytest.raises(ConfigError, match="engine coreml: a Core ML package runs on Apple's"):
        check(tiny_bert(), engines=["coreml"])


def test_refuses_checkpoints_of_other_tasks(tmp_path: Path) -> None:
    from transformers import BertForMultipleChoice

    BertForMultipleChoice(tiny_bert().config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="multiple-choice"):
        check(str(tmp_path), Progress())
