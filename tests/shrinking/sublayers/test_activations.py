from __future__ import annotations

import copy

import pytest
import torch

from hfcompress.calibration.batches import Calibration
from hfcompress.calibration.hooks import recorded_calls
from hfcompress.calibration.moments import weight_of
from hfcompress.models.architectures import blocks
from hfcompress.models.sublayers import sublayers
from hfcompress.shrinking.sublayers.activations import Stream, Streams
from tests.tiny_models import SHRINKABLE, shrinkable_batches, shrinkable_model


@pytest.mark.parametrize("model_type", SHRINKABLE)
def test_the_residual_is_what_the_output_is_added_to(model_type: str) -> None:
    """Behind the feed-forward part their sum is what the layer passes on (normed, in BERT)."""
    model, batches = shrinkable_model(model_type), shrinkable_batches(model_type)
    names = list(blocks(model))
    rows, parts = Calibration(batches), [p for p in sublayers(model) if p.layer == names[0]]
    stream = Stream(model, rows)
    with recorded_calls(blocks(model)) as calls, torch.no_grad():
        rows.run(model, 1)
    seen = stream.pass_through(parts, 1)
    whole = seen[1].residual + seen[1].output
    if not parts[1].prenorm:
        layer = model.get_submodule(names[0])
        norm = layer.output_layer_norm if model_type == "distilbert" else layer.output.LayerNorm
        whole = norm(whole)
    torch.testing.assert_close(whole, calls[names[0]][2])
    alone = stream.look(next(p for p in sublayers(model) if p.layer == names[1]), 1)
    assert alone.residual.shape == alone.output.shape


def test_both_ways_give_the_same_moments_and_padding_does_not_count() -> None:
    model, batches = shrinkable_model("bert"), shrinkable_batches("bert")
    noisy = [dict(batch) for batch in batches]
    for batch in noisy:
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 7)
    parts = sublayers(model)[:2]
    one = Streams(model, model, Calibration(batches), True, {}).dense_moments(parts)
    padded = Streams(model, model, Calibration(noisy), True, {}).dense_moments(parts)
    two = Streams(model, copy.deepcopy(model), Calibration(batches), True, {})
    two.enter(parts)
    for part in parts:
        again = two.moments(part)
        for first, second in ((again, one[part.name]), (padded[part.name], one[part.name])):
            torch.testing.assert_close(first.gram, second.gram)
            torch.testing.assert_close(first.cross, second.cross)


def test_the_target_makes_up_for_drift_or_does_not() -> None:
    model, rows = shrinkable_model("bert"), Calibration(shrinkable_batches("bert"))
    drifted = copy.deepcopy(model)
    weight_of(drifted.bert.encoder.layer[0].output.dense).data *= 0.5
    layers = list(blocks(model))
    found = {}
    for follow in (True, False):
        streams = Streams(model, drifted, rows, follow, {})
        for layer in layers[:2]:
            parts = [part for part in sublayers(model) if part.layer == layer]
            streams.enter(parts)
            found[follow, layer] = streams.moments(parts[0])
            streams.leave(layer)
    first, second = layers[:2]
    torch.testing.assert_close(found[True, first].cross, found[False, first].cross)
    assert not torch.allclose(found[True, second].output, found[False, second].output)  # type: ignore[arg-type]


def test_tokens_count_by_their_weights() -> None:
    model, batches = shrinkable_model("bert"), shrinkable_batches("bert", batches=1)
    part = sublayers(model)[0]
    tokens = int(batches[0]["attention_mask"].sum())
    weights = torch.zeros(tokens)
    weights[0] = 1.0
    rows = Calibration(batches)
    moments = Streams(model, model, rows, True, {part.name: [weights]}).dense_moments([part])[
        part.name
    ]
    stream = Stream(model, rows)
    x = stream.look(part, 0).inputs[0, 0]
    torch.testing.assert_close(moments.mean[0], x)
