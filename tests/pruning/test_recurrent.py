"""Recurrent layers in single steps: torch's outputs, and the inputs of their matrices seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from hfcompress import PruningConfig, prune
from hfcompress.pruning.inputs import projections_called
from hfcompress.pruning.targets import weight_matrices
from tests.plain_networks import NETWORKS

KINDS: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def tensors(found: object) -> list[Tensor]:
    if isinstance(found, PackedSequence):
        return [found.data]
    if isinstance(found, Tensor):
        return [found]
    assert isinstance(found, tuple)
    return [tensor for part in found for tensor in tensors(part)]


def assert_same(module: nn.Module, *arguments: Any) -> None:
    with torch.no_grad():
        expected = module(*arguments)
        with projections_called(module, weight_matrices(module)):
            assert "forward" in vars(module)
            found = module(*arguments)
    assert "forward" not in vars(module)
    for ours, theirs in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ways", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_steps_give_what_torch_gives(kind: str, ways: bool, batch_first: bool) -> None:
    torch.manual_seed(0)
    module = KINDS[kind](
        3, 4, num_layers=2, bidirectional=ways, batch_first=batch_first, bias=not ways
    ).eval()
    rows = torch.randn(5, 7, 3)
    batch = 5 if batch_first else 7
    states = torch.randn(2 * (1 + ways), batch, 4)
    assert_same(module, rows)
    assert_same(module, rows, (states, states + 1) if kind == "lstm" else states)
    assert_same(module, rows[0])  # without a batch
    lengths = torch.tensor([2, 5, 1, 4, 5]) if batch_first else torch.tensor([2, 5, 1, 4, 5, 3, 1])
    packed = pack_padded_sequence(rows, lengths, batch_first, enforce_sorted=False)
    assert_same(module, packed)
    assert_same(module, packed, (states, states + 1) if kind == "lstm" else states)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_give_what_torch_gives(cell: Any) -> None:
    torch.manual_seed(0)
    module, rows, state = cell(3, 4), torch.randn(5, 3), torch.randn(5, 4)
    given = (state, state + 1) if cell is nn.LSTMCell else state
    for arguments in ((rows,), (rows, given), (rows[0],)):
        assert_same(module, *arguments)


def test_wanda_prunes_an_lstm_by_its_inputs_and_hidden_states() -> None:
    network = NETWORKS["lstm tagger"]
    model, (tokens, labels) = network.model(), network.rows(8)
    lstm, words = model.get_submodule("lstm"), model.get_submodule("embedding")
    before = {name: value.clone() for name, value in lstm.named_parameters()}
    with torch.no_grad():
        inputs = words(tokens)
        states = lstm(inputs)[0][..., :16]  # of the first direction: h_1 ... h_T
    hidden = torch.cat([torch.zeros(8, 1, 16), states[:, :-1]], 1)
    report = prune(model, PruningConfig(method="wanda", sparsity=0.5), [(tokens, labels)])
    assert report.notes == ()
    assert {layer.name for layer in report.layers} == {
        f"lstm.weight_{part}_l0{way}" for part in ("ih", "hh") for way in ("", "_reverse")
    }
    for name, seen in (("weight_ih_l0", inputs), ("weight_hh_l0", hidden)):
        scores = before[name].abs() * seen.flatten(0, 1).norm(dim=0)
        half = scores.shape[1] // 2
        lost = scores.argsort(1)[:, :half]
        expected = before[name].clone().scatter_(1, lost, 0.0)
        torch.testing.assert_close(lstm.get_parameter(name), expected, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["sparsegpt", "alps"])
def test_reconstruction_of_a_gru_loses_less_than_magnitude(method: Any) -> None:
    network = NETWORKS["conv1d and gru"]
    rows, labels = network.rows(64)
    dense = network.model()

    def error(config: PruningConfig) -> float:
        model = network.model()
        prune(model, config, [(rows, labels)])
        with torch.no_grad():
            return float((model(rows) - dense(rows)).square().mean())

    ours = error(PruningConfig(method=method, sparsity=0.6, targets=("gru",)))
    assert ours < error(PruningConfig(sparsity=0.6, targets=("gru",)))
