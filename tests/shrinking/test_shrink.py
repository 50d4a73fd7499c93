"""`shrink` from the outside: budgets, options, families, what must not change."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from hfcompress.calibration.batches import Calibration
from hfcompress.calibration.moments import weight_of
from hfcompress.errors import CalibrationError, ConfigError, TargetError
from hfcompress.measure.size import count_parameters
from hfcompress.models import surgery
from hfcompress.models.sublayers import sublayers
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.quality import divergence, predictions
from hfcompress.shrinking.report import ShrinkReport
from hfcompress.shrinking.shrink import shrink
from hfcompress.shrinking.sublayers.scores import masked
from tests.tiny_models import SHRINKABLE, logits, shrinkable_batches, shrinkable_model

HALF: dict[str, Any] = {"macs": 0.5}


def shrunk(model_type: str = "bert", **config: Any) -> tuple[Any, ShrinkReport]:
    model = shrinkable_model(model_type)
    report = shrink(model, ShrinkConfig(**config), Calibration(shrinkable_batches(model_type)))
    return model, report


@functools.cache
def logits_of(**config: Any) -> torch.Tensor:
    """Logits of BERT, shrunk; tests that compare with the same base share it."""
    return logits(shrunk(**config)[0], shrinkable_batches("bert")[0])


def drift(model: Any, model_type: str = "bert") -> float:
    """KL of the predictions from the dense model's."""
    rows = Calibration(shrinkable_batches(model_type))
    return divergence(predictions(shrinkable_model(model_type), rows), predictions(model, rows))


@pytest.mark.parametrize("model_type", SHRINKABLE)
def test_half_of_every_family(model_type: str) -> None:
    model, report = shrunk(model_type, **HALF)
    assert 0.44 < report.macs.share <= 0.5
    assert report.parameters.shrunk == count_parameters(model) < report.parameters.dense
    assert [part.width for part in report.parts] == [p.units(model) for p in sublayers(model)]
    magnitude, _ = shrunk(model_type, **HALF, score="magnitude")
    assert drift(model, model_type) < drift(magnitude, model_type) / 2
    model(**shrinkable_batches(model_type)[0]).loss.backward()


@pytest.mark.parametrize("score", ["magnitude", "taylor", "fisher"])
@pytest.mark.parametrize("model_type", SHRINKABLE)
def test_what_goes_is_what_its_mask_zeroes(model_type: str, score: str) -> None:
    """Without repair the shrunk model is the dense one with masks, within 1e-5."""
    model, report = shrunk(model_type, **HALF, score=score)
    dense, (batch, *_) = shrinkable_model(model_type), shrinkable_batches(model_type)
    masks = {part.name: torch.zeros(part.units) for part in report.parts}
    for part in report.parts:
        masks[part.name][list(part.keep)] = 1
    with masked(dense, sublayers(dense), masks):
        wanted = logits(dense, batch)
    assert (logits(model, batch) - wanted).abs().max() < 1e-5
    assert (logits(shrinkable_model(model_type), batch) - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("model_type", SHRINKABLE)
@pytest.mark.parametrize(
    "config", [{"macs": 1.0}, {"macs": 1.0, "score": "magnitude"}, {"layers": 3}]
)
def test_shrinking_nothing_changes_nothing(model_type: str, config: dict[str, Any]) -> None:
    model, report = shrunk(model_type, **config)
    before = shrinkable_model(model_type).state_dict()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert report.macs.share == 1.0


def test_a_dry_run_says_what_would_go_and_changes_nothing() -> None:
    model, report = shrunk(**HALF, score="fisher", dry_run=True)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.parameters(), shrinkable_model("bert").parameters(), strict=True)
    )
    done = shrunk(**HALF, score="fisher")[1]
    assert report.parts == done.parts
    assert (report.macs, report.parameters) == (done.macs, done.parameters)
    assert "would keep 4" in str(report)
    assert "-> " in str(done)
    layers = shrunk(layers=2, dry_run=True)
    assert len(sublayers(layers[0])) == 6
    assert len(layers[1].dropped_layers) == 1
    assert layers[1].macs.share == pytest.approx(2 / 3)


def test_parameters_and_bytes() -> None:
    model, report = shrunk(parameters=20_000)
    assert 19_500 < count_parameters(model) <= 20_000
    half, _ = shrunk(bytes=80_000)
    assert sum(p.nbytes for p in half.parameters()) == 4 * count_parameters(model)
    assert report.requested == 20_000


@pytest.mark.parametrize(
    "config", [{"macs": 0.0001, "min_heads": 1}, {"parameters": 5_000}, {"bytes": 20_000}]
)
def test_a_budget_below_the_least_says_the_least(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"is below what .* the least is [\d,]+") as caught:
        shrunk(**config)
    least = int(str(caught.value).rsplit(" ", 1)[1].replace(",", ""))
    if "macs" not in config:
        exact: dict[str, Any] = dict.fromkeys(config, least)
        model, _ = shrunk(**exact)
        assert sum(part.units(model) for part in sublayers(model)) == 0
        model(**shrinkable_batches("bert")[0]).loss.backward()


@pytest.mark.parametrize("config", [{"parameters": 10**6}, {"bytes": 10**7}, {"latency": 1e6}])
def test_a_budget_above_the_dense_model_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"above the dense model, which (has|takes) \d"):
        shrunk(**config)


def test_whole_layers_go() -> None:
    model, report = shrunk(layers=2)
    (gone,) = report.dropped_layers
    assert model.config.num_hidden_layers == 2
    assert report.macs.share == pytest.approx(2 / 3)
    alone = {number: shrinkable_model("bert") for number in range(3)}
    for number, other in alone.items():
        from hfcompress.models.surgery import keep_layers

        keep_layers(other, [n for n in range(3) if n != number])
    assert gone == min(alone, key=lambda number: drift(alone[number]))
    both, _ = shrunk(layers=2, macs=0.3)
    assert len(sublayers(both)) == 4
    with pytest.raises(ConfigError, match="layers 4 is above what the model has; it has 3"):
        shrunk(layers=4)


@pytest.mark.parametrize(
    "change",
    [
        {"score": "taylor"},
        {"score": "fisher"},
        {"allocation": "uniform"},
        {"repair": "none"},
        {"repair": "mean"},
        {"follow_dense": False},
        {"heads": False, "macs": 0.7},
        {"neurons": False, "macs": 0.8},
        {"multiple_of": 16},
        {"min_heads": 3},
        {"min_neurons": 20},
        {"rounds": 2},
        {"output_importance": 0.0},
        {"token_importance": 0.0},
        {"damping": 1.0},
        {"calibration_rows": 5},
        {"table_rows": 1},
        {"length": 400},
        {"seed": 1},
    ],
    ids=str,
)  # fmt: skip
def test_every_option_changes_the_result(change: dict[str, Any]) -> None:
    base = {"macs": change.get("macs", 0.5)}
    other, _ = shrunk(**{**base, **change})
    assert not torch.equal(logits_of(**base), logits(other, shrinkable_batches("bert")[0]))


def test_widths_obey_their_limits() -> None:
    model, _ = shrunk(**HALF, multiple_of=16, min_heads=1, min_neurons=16)
    widths = {
        kind: [p.units(model) for p in sublayers(model) if p.kind == kind]
        for kind in ("heads", "neurons")
    }
    assert all(width % 16 == 0 and width >= 16 for width in widths["neurons"])
    assert all(width >= 1 for width in widths["heads"])
    neurons_only, _ = shrunk(macs=0.7, heads=False)
    assert all(p.units(neurons_only) == 4 for p in sublayers(neurons_only) if p.kind == "heads")


def test_repair_helps() -> None:
    by_repair = {r: drift(shrunk(**HALF, repair=r)[0]) for r in ("none", "mean", "ridge")}
    assert by_repair["ridge"] < by_repair["mean"] < by_repair["none"]


def test_measured_widths_go_where_they_matter() -> None:
    """A layer that hardly moves the predictions is cut first."""
    model = shrinkable_model("bert")
    quiet = sublayers(model)[3]
    weight_of(quiet.out(model)).data *= 1e-3
    report = shrink(model, ShrinkConfig(macs=0.85), Calibration(shrinkable_batches("bert")))
    assert report.parts[3].width < 0.1 * report.parts[3].units
    even = shrink(
        shrinkable_model("bert"),
        ShrinkConfig(macs=0.85, allocation="uniform"),
        Calibration(shrinkable_batches("bert")),
    )
    assert even.parts[3].width == even.parts[1].width


def test_rounds_recover_in_between() -> None:
    model, seen = shrinkable_model("bert"), []

    def recover(network: Any) -> None:
        seen.append(count_parameters(network))
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
        network(**shrinkable_batches("bert")[0]).loss.backward()
        optimizer.step()

    config = ShrinkConfig(macs=0.3, rounds=3)
    report = shrink(model, config, Calibration(shrinkable_batches("bert")), recover=recover)
    assert len(seen) == 2
    assert seen[0] > seen[1] > count_parameters(model)
    assert report.macs.share <= 0.3
    untrained, _ = shrunk(macs=0.3, rounds=3)
    assert not torch.equal(
        logits(model, shrinkable_batches("bert")[0]),
        logits(untrained, shrinkable_batches("bert")[0]),
    )


def test_the_model_keeps_its_mode_and_its_gradients_are_gone() -> None:
    model = shrinkable_model("bert").train()
    shrink(model, ShrinkConfig(**HALF), Calibration(shrinkable_batches("bert")))
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "modernbert"])
def test_it_reloads_bit_for_bit(model_type: str, tmp_path: Path) -> None:
    model, _ = shrunk(model_type, macs=0.3)
    model.save_pretrained(tmp_path)
    again: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    batch = shrinkable_batches(model_type)[0]
    assert torch.equal(logits(again.eval(), batch), logits(model, batch))
    assert count_parameters(again) == count_parameters(model)


def test_a_family_with_fixed_heads_loses_neurons_only() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 60}
    model: Any = GPT2ForSequenceClassification(GPT2Config(**sizes, pad_token_id=0))
    report = shrink(model, ShrinkConfig(macs=0.6), Calibration(shrinkable_batches("gpt2")))
    assert {part.kind for part in report.parts} == {"neurons"}
    assert "heads are kept" in report.notes[0]
    assert report.macs.share <= 0.6
    with pytest.raises(TargetError, match="fixes the number of heads"):
        shrink(
            model, ShrinkConfig(macs=0.6, neurons=False), Calibration(shrinkable_batches("gpt2"))
        )


def test_bad_calls() -> None:
    with pytest.raises(TargetError, match=r"known families are .*distilbert"):
        shrink(torch.nn.Linear(2, 2), ShrinkConfig(**HALF, score="magnitude"))
    with pytest.raises(CalibrationError, match="pass Calibration"):
        shrink(shrinkable_model("bert"), ShrinkConfig(**HALF))
    with pytest.raises(CalibrationError, match="measured on real rows"):
        shrink(shrinkable_model("bert"), ShrinkConfig(speedup=2, score="magnitude"))
    unlabelled = [{k: v for k, v in b.items() if k != "labels"} for b in shrinkable_batches("bert")]
    with pytest.raises(CalibrationError, match="no 'labels'"):
        shrink(
            shrinkable_model("bert"), ShrinkConfig(**HALF, score="taylor"), Calibration(unlabelled)
        )
    shrink(shrinkable_model("bert"), ShrinkConfig(**HALF), Calibration(unlabelled))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "give one budget of macs"),
        ({"macs": 0.5, "speedup": 2.0}, "macs and speedup"),
        ({"macs": 0.0}, "greater than 0"),
        ({"macs": 0.5, "heads": False, "neurons": False, "channels": False}, "are all false"),
        ({"macs": 0.5, "allocation": "global"}, "allocation: optimal"),
        ({"macs": 0.5, "dry_run": True, "rounds": 2}, "rounds: 1"),
        ({"mac": 0.5}, "did you mean 'macs'"),
    ],
)
def test_bad_configs(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShrinkConfig(**config)


def test_the_report_is_plain_data() -> None:
    import json

    _, report = shrunk(**HALF)
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["budget"] == "macs"
    assert plain["parts"][0].keys() == {"name", "kind", "units", "width", "error"}
    assert all(part["error"] >= 0 for part in plain["parts"])


def test_a_copy_shrinks_the_same() -> None:
    model = shrinkable_model("bert")
    other = copy.deepcopy(model)
    rows = Calibration(shrinkable_batches("bert"))
    shrink(model, ShrinkConfig(**HALF), rows)
    shrink(other, ShrinkConfig(**HALF), rows)
    assert torch.equal(
        logits(model, shrinkable_batches("bert")[0]), logits(other, shrinkable_batches("bert")[0])
    )


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_surgery_that_keeps_rows_in_another_order_is_found_out_and_undone(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is returned has been compared with the dense model whose units are masked."""
    keep_outputs = surgery.keep_outputs

    def keep_others(module: Any, keep: Any) -> None:
        keep_outputs(module, torch.as_tensor(keep).flip(0))

    monkeypatch.setattr(surgery, "keep_outputs", keep_others)
    model, batches = shrinkable_model(family), Calibration(shrinkable_batches(family))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TargetError, match="without them its outputs differ"):
        shrink(model, ShrinkConfig(macs=0.6, score="magnitude"), batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_small_logits_behind_large_repairs_are_no_other_outputs() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        vocab_size=128, max_position_embeddings=64,
    )  # fmt: skip
    model = BertForSequenceClassification(config).train(False)
    ids = torch.randint(1, 128, (8, 32))
    rows = {"input_ids": ids, "labels": torch.zeros(8, dtype=torch.long)}
    with torch.no_grad():
        assert model(ids).logits.abs().max() < 0.1  # of hidden states about 1
    report = shrink(model, ShrinkConfig(macs=0.7), Calibration([rows]))
    assert report.macs.share <= 0.7
