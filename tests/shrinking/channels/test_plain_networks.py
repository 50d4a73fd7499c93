"""Small networks of many kinds: a smaller one gives what the dense one gives with masks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from transformers import PoolFormerConfig, PoolFormerForImageClassification

from benchmarks._networks import NETWORKS
from benchmarks.network_matrix import RIGHT, examine, made, outputs
from hfcompress.calibration.batches import Calibration
from hfcompress.errors import CalibrationError, ModelError, TargetError
from hfcompress.measure.macs import count_macs
from hfcompress.models.surgery import load_shapes
from hfcompress.shrinking.channels.costs import ChannelCosts, uniform_channels
from hfcompress.shrinking.channels.graph import trace
from hfcompress.shrinking.channels.groups import Dimension, Term
from hfcompress.shrinking.channels.proof import check_cut
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.outputs import difference
from hfcompress.shrinking.shrink import shrink

CHOSEN = [
    "concat_image_first", "shortcut_padded_with_zeros", "shufflenet", "pixel_shuffle", "chunk_gate",
    "transposed_in_groups", "gru_tail", "volumes", "two_heads", "head_for_training",
    "one_weight_in_two_layers", "attention_of_four_heads", "transformer_encoder", "group_norm",
    "buffer_for_each_channel", "convolution_by_function", "words_and_convolutions", "mixer",
]  # fmt: skip


@pytest.mark.parametrize("name", CHOSEN)
def test_small_networks_equal_their_masked_selves_in_both_modes(name: str) -> None:
    found = examine(name, peers=False)
    assert (found.shrink, found.default, found.reload) == (RIGHT, RIGHT, RIGHT), found.why
    assert found.left <= 0.7


def plain(macs: float = 0.7, **options: Any) -> ShrinkConfig:
    return ShrinkConfig(macs=macs, **{"score": "magnitude", **options})


class Cnn(nn.Module):
    """Two convolutions and a head; ``middle`` is what lies between them."""

    def __init__(self, middle: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.c, self.head = nn.Conv2d(24, 12, 1), nn.Linear(12, 4)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        found = self.c(self.b(self.middle(self.a(x).relu())).relu()).relu()
        logits: Tensor = self.head(found.mean((2, 3)))
        return logits


def data() -> Calibration:
    torch.manual_seed(1)
    return Calibration([{"x": torch.randn(4, 3, 8, 8), "labels": torch.arange(4)}])


MIDDLES: dict[str, Any] = {
    "a literal number of channels": lambda x: x.view(len(x), 16, 8, 8),
    "a constant of that width": lambda x: x * torch.linspace(0.5, 1.5, 16)[:, None, None],
    "an operator that mixes channels": lambda x: x.softmax(1),
    "an operator that nobody has described": lambda x: torch.cdist(x, x, p=1.0),
    "an index of channels": lambda x: x[:, torch.arange(15, -1, -1)],
    "unequal parts": lambda x: torch.cat([x[:, 10:], x[:, :10]], 1),
    "a part of the channels": lambda x: torch.cat([x[:, :5] * 2, x[:, 5:]], 1),
    "a sum over channels": lambda x: x * x.sum(1, keepdim=True).sigmoid(),
}


@pytest.mark.parametrize("reason", MIDDLES)
def test_what_fixes_a_width_leaves_that_layer_alone_and_the_rest_goes_on(reason: str) -> None:
    middle = MIDDLES[reason]
    model = Cnn(middle)
    dense = copy.deepcopy(model)
    report = shrink(model, plain(), data())
    assert model.a.out_channels == 16
    assert model.b.out_channels < 24
    assert report.macs.share == pytest.approx(
        count_macs(model, {"x": torch.randn(1, 3, 8, 8)}).total
        / count_macs(dense, {"x": torch.randn(1, 3, 8, 8)}).total
    )


def test_the_report_names_the_layers_whose_width_is_fixed() -> None:
    report = shrink(Cnn(MIDDLES["a literal number of channels"]), plain(), data())
    assert any(
        note.startswith("a keeps all of its channels: without some") for note in report.notes
    )
    assert "a keeps all of its channels" in str(report)


class Fixed(nn.Module):
    """A network whose only hidden width is written in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16 * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.a(x).relu().view(-1, 1024))
        return logits


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_network_of_fixed_widths_is_refused_and_left_as_it_was(dry_run: bool) -> None:
    model = Fixed()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TargetError, match="without some of a it fails with"):
        shrink(model, plain(dry_run=dry_run), data())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.a.out_channels == 16


def test_a_cut_of_other_columns_is_found_out() -> None:
    """The proof does not take the graph's word: shifted columns give other outputs."""
    model, batch = Cnn(nn.Identity()).eval(), data().batches[0]
    (group, *_) = trace(model, batch).groups
    keep = {group.name: torch.arange(0, 16, 2)}
    assert check_cut(model, [group], keep, batch) is None
    places = []
    for place in group.places:
        index = place.index.roll(1) if place.side == "inputs" else place.index
        places.append(type(place)(place.module, place.side, index, place.unit))
    shifted = type(group)(group.name, group.units, tuple(places))
    assert "outputs differ" in str(check_cut(model, [shifted], keep, batch))


def test_heads_of_attention_are_kept_whole_even_where_pieces_would_fit() -> None:
    """32 of 48 values would still make whole heads of 8."""
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(10, 32)
            self.q, self.k, self.v = (nn.Linear(32, 48) for _ in range(3))
            self.out, self.up, self.down = nn.Linear(48, 32), nn.Linear(32, 64), nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            parts = (f(x).unflatten(-1, (-1, 8)).transpose(1, 2) for f in (self.q, self.k, self.v))
            q, k, v = parts
            mixed = (q @ k.mT).softmax(-1) @ v
            x = self.out(mixed.transpose(1, 2).flatten(2))
            logits: Tensor = self.down(self.up(x).relu()).mean(1)
            return logits

    model = Model()
    shrink(model, plain(macs=0.9), Calibration([{"x": torch.randn(4, 6, 10)}]))
    assert [f.out_features for f in (model.q, model.k, model.v)] == [48] * 3
    assert model.up.out_features < 64


def test_the_budget_counts_what_count_macs_counts() -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.up = nn.Conv2d(3, 16, 3, padding=1), nn.ConvTranspose2d(16, 12, 2, 2)
            self.kernel = nn.Parameter(torch.randn(12, 12, 3, 3))
            self.tail, self.head = nn.LSTM(12, 8, batch_first=True), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = conv2d(self.up(self.a(x).relu()).relu(), self.kernel, padding=1).relu()
            x = conv2d(x, self.kernel, padding=1)
            logits: Tensor = self.head(self.tail(x.mean(2).transpose(1, 2))[0][:, -1])
            return logits

    model = Called()
    row = {"x": torch.randn(1, 3, 8, 8)}
    before = count_macs(model, row).total
    report = shrink(model, plain(), data())
    assert report.macs.dense == before
    assert report.macs.shrunk == count_macs(model, row).total <= 0.7 * before
    assert model.kernel.shape[0] == model.up.out_channels < 12


def test_layers_of_one_dimension_and_of_three_are_fitted_anew() -> None:
    for name in ("sound", "volumes", "temporal"):
        dense, rows = made(NETWORKS[name])
        batches = Calibration([{"x": rows}])
        errors = []
        for repair in ("none", "ridge"):
            model = copy.deepcopy(dense)
            shrink(model, plain(macs=0.6, repair=repair, allocation="uniform"), batches)
            gap = outputs(model, rows)[0] - outputs(dense, rows)[0]
            errors.append(float(gap.square().mean()))
        assert errors[1] < errors[0] / 2


def test_dead_units_go_before_others() -> None:
    terms = [Term(1.0, (Dimension(10, {name: 1.0}),)) for name in ("a", "b")]
    costs = ChannelCosts(terms, {"a": 10, "b": 10})
    allowed = {"a": list(range(1, 11)), "b": list(range(1, 11))}
    assert uniform_channels(costs, allowed, 16) == {"a": 8, "b": 8}
    assert uniform_channels(costs, allowed, 16, {"a": 6, "b": 0}) == {"a": 6, "b": 10}
    assert uniform_channels(costs, allowed, 7, {"a": 6, "b": 0}) == {"a": 2, "b": 5}


def test_saved_shapes_are_refused_by_another_network() -> None:
    model = Cnn(nn.Identity())
    with pytest.raises(ModelError, match="do not belong to Fixed"):
        load_shapes(Fixed(), model.state_dict())
    norms = [
        nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width, elementwise_affine=False))
        for width in (6, 8)
    ]
    before = copy.deepcopy(norms[1].state_dict())
    with pytest.raises(ModelError, match="LayerNorm without parameters"):
        load_shapes(norms[1], norms[0].state_dict())
    assert all(torch.equal(value, before[name]) for name, value in norms[1].state_dict().items())


class TwoInputs(nn.Module):
    """Images and a row of numbers; a cell of a recurrent layer reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.numbers = nn.Conv2d(3, 16, 3), nn.Linear(4, 16)
        self.cell, self.head = nn.GRUCell(16, 8), nn.Linear(8, 5)

    def forward(self, image: Tensor, row: Tensor) -> dict[str, Tensor]:
        found = self.a(image).relu().mean((2, 3)) + self.numbers(row).relu()
        return {"logits": self.head(self.cell(found))}


@pytest.mark.parametrize("score", ["magnitude", "taylor", "reconstruction"])
def test_several_inputs_and_recurrent_cells(score: Any) -> None:
    torch.manual_seed(0)
    model = TwoInputs()
    rows = {"image": torch.randn(6, 3, 8, 8), "row": torch.randn(6, 4)}
    labels = {"labels": torch.arange(6) % 5}
    shrink(model, ShrinkConfig(macs=0.7, score=score), Calibration([{**rows, **labels}]))
    assert model.cell.input_size == model.a.out_channels == model.numbers.out_features < 16
    assert model(**rows)["logits"].shape == (6, 5)


def test_labels_that_do_not_fit_are_refused_and_those_of_tokens_are_read() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    config, rows = ShrinkConfig(macs=0.6, score="taylor"), torch.randn(5, 7, 4)
    with pytest.raises(CalibrationError, match=r"labels of the shape \[5\] do not fit"):
        shrink(model, config, Calibration([{"x": rows, "labels": torch.arange(5) % 3}]))
    tokens = torch.randint(0, 3, (5, 7))
    report = shrink(model, config, Calibration([{"x": rows, "labels": tokens}]))
    assert report.macs.share <= 0.6


class ScaledWords(nn.Embedding):
    """A table with factors of its own: one number, as Gemma has it, and one for each channel."""

    def __init__(self) -> None:
        super().__init__(50, 24)
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(24.0).sqrt())
        self.factors = nn.Parameter(torch.linspace(0.5, 1.5, 24))

    def forward(self, input: Tensor) -> Tensor:
        found: Tensor = super().forward(input) * self.scale * self.factors
        return found


def test_tables_have_tensors_beside_their_weight() -> None:
    torch.manual_seed(0)
    words, first, last = ScaledWords(), nn.Linear(24, 16), nn.Linear(16, 3)
    model = nn.Sequential(words, first, nn.ReLU(), last)
    report = shrink(model, plain(0.6), Calibration([{"input": torch.arange(40).reshape(8, 5)}]))
    assert report.macs.share <= 0.6
    width = words.embedding_dim
    assert words.weight.shape[1] == words.factors.numel() == first.in_features == width < 24
    assert model(torch.arange(5)[None]).shape == (1, 5, 3)


def test_channels_that_no_module_reads_have_no_gradient_scores() -> None:
    dense, rows = made(NETWORKS["convolution_by_function"])
    data = Calibration([{"x": rows, "labels": torch.arange(6) % 5}])
    with pytest.raises(TargetError, match="no module reads the channels of a,"):
        shrink(dense, ShrinkConfig(macs=0.7, score="taylor"), data)


def test_groups_that_a_checkpoint_could_not_record_are_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_encoder_blocks": 2}
    sizes |= {"patch_sizes": [7, 3], "strides": [4, 2], "padding": [2, 1], "num_labels": 3}
    model: Any = PoolFormerForImageClassification(PoolFormerConfig(**sizes))
    model.eval()
    batch = {"pixel_values": torch.randn(4, 3, 32, 32)}
    report = shrink(model, plain(macs=0.8), Calibration([batch]))
    assert any("no checkpoint could say the shapes of" in note for note in report.notes)
    model.save_pretrained(tmp_path)
    again: Any = PoolFormerForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**batch).logits, model(**batch).logits)


def test_differences_of_outputs_are_said() -> None:
    batch = {"x": torch.randn(3, 4)}
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    other = copy.deepcopy(model)
    assert difference(model, other, batch) is None
    with torch.no_grad():
        other.bias.add_(1)
    assert difference(model, other, batch) == (
        "its outputs differ from those with the units masked"
    )
    with torch.no_grad():
        other.bias.fill_(torch.nan)
    assert difference(model, other, batch) == "its outputs are NaN or infinite"
    assert "shapes [[2, 3]] in place of [[2, 2]]" in str(difference(model, nn.Linear(4, 3), batch))
    assert "it fails with" in str(difference(model, nn.Linear(5, 2), batch))
    dropped = nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 2))
    assert difference(dropped, copy.deepcopy(dropped), batch) is None
