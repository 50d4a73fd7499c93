from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hfcompress import compute_neuron_importance, prune_layer_neurons
from hfcompress.errors import CalibrationError, ConfigError, TargetError


def pair(seed: int = 0) -> tuple[nn.Linear, nn.Linear, torch.Tensor]:
    torch.manual_seed(seed)
    return nn.Linear(6, 20), nn.Linear(20, 4), torch.randn(3, 50, 6)


def run(first: nn.Linear, second: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = second(first(x).relu())
    return found


def test_neurons_leave_and_real_inputs_make_up_for_them() -> None:
    errors = {}
    for name in ("magnitude", "inputs"):
        first, second, x = pair()
        before = run(first, second, x)
        inputs = first(x).relu() if name == "inputs" else None
        kept = prune_layer_neurons(first, second, 0.5, inputs=inputs)
        assert (first.out_features, second.in_features, len(kept)) == (10, 10, 10)
        errors[name] = float((run(first, second, x) - before).square().mean())
    assert errors["inputs"] < errors["magnitude"] / 3


def test_the_given_importance_decides() -> None:
    first, second, _ = pair()
    weight = first.weight.detach().clone()
    scores = torch.zeros(20)
    scores[[3, 7]] = 1
    assert prune_layer_neurons(first, second, 2, importance=scores).tolist() == [3, 7]
    assert torch.equal(first.weight, weight[[3, 7]])
    first, second, x = pair()
    inputs = first(x).relu()
    assert prune_layer_neurons(first, second, 2, importance=scores, inputs=inputs).tolist() == [
        3,
        7,
    ]


def test_damping_and_no_bias() -> None:
    found = []
    for damping in (0.0, 10.0):
        first, second, x = pair()
        second.register_parameter("bias", None)
        prune_layer_neurons(first, second, 5, inputs=first(x).relu(), damping=damping)
        found.append(second.weight.detach())
    assert not torch.equal(*found)


def test_importance_is_the_norm_of_a_neurons_weights_or_its_part_in_the_output() -> None:
    first, second, _ = pair()
    plain = compute_neuron_importance(first, second)
    both = torch.cat([first.weight, second.weight.T], 1)
    torch.testing.assert_close(plain, both.norm(dim=1))
    constant = torch.randn(30, 20)
    constant[:, 4] = 100.0
    assert compute_neuron_importance(first, second, constant).argmin() == 4


def test_no_neuron_left_is_the_mean() -> None:
    first, second, x = pair()
    before = run(first, second, x)
    prune_layer_neurons(first, second, 0, inputs=first(x).relu())
    torch.testing.assert_close(run(first, second, x)[0, 0], before.mean((0, 1)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep": 21}, ConfigError, "from 0 to 20"),
        ({"keep": -1}, ConfigError, "from 0 to 20"),
        ({"keep": 5, "importance": torch.ones(3)}, ConfigError, "one number for each"),
        ({"keep": 5, "inputs": torch.ones(3, 4)}, CalibrationError, "inputs have width 4"),
        ({"keep": 5, "inputs": torch.full((3, 20), torch.nan)}, CalibrationError, "NaN"),
    ],
    ids=str,
)
def test_bad_input(options: dict[str, Any], error: type[Exception], message: str) -> None:
    first, second, _ = pair()
    with pytest.raises(error, match=message):
        prune_layer_neurons(first, second, **options)
    with pytest.raises(TargetError, match="4 outputs and the second 6 inputs"):
        prune_layer_neurons(second, first, 2)


@pytest.mark.parametrize("form", ["module", "list", "sequential"])
@pytest.mark.parametrize("with_inputs", [False, True])
def test_a_batch_norm_between_loses_the_same_neurons(form: str, with_inputs: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(8, 32), nn.BatchNorm1d(32), nn.PReLU(32), nn.Dropout(), nn.Linear(32, 4)
    )
    x = torch.randn(64, 8)
    net(x)
    net.eval()
    dense = copy.deepcopy(net)
    inputs = net[:4](x).detach() if with_inputs else None
    first: Any = net[:4] if form == "sequential" else net[0]
    between: Any = {"module": net[1:4], "list": [net[1], net[2]], "sequential": ()}[form]
    last: Any = net[4]
    kept = prune_layer_neurons(first, last, 0.5, between=between, inputs=inputs)
    wide: Any = dense[4]
    with torch.no_grad():
        wide.weight.zero_()[:, kept] = last.weight
        wide.bias.copy_(last.bias)
        torch.testing.assert_close(net(x), dense(x))
    net.train()(x)


@pytest.mark.parametrize(
    "module", [nn.LayerNorm(32), nn.Softmax(-1), nn.BatchNorm1d(8), nn.Linear(32, 32)]
)
def test_modules_between_that_mix_neurons_are_refused(module: nn.Module) -> None:
    first, second = nn.Linear(8, 32), nn.Linear(32, 4)
    with pytest.raises(TargetError, match=f"{type(module).__name__} between the Linears"):
        prune_layer_neurons(first, second, 0.5, between=module)
    assert first.out_features == second.in_features == 32
