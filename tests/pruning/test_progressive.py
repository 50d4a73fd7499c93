import torch
from torch import nn

from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.iterative import progressive
from hfcompress.pruning.prune import prune
from hfcompress.pruning.training_config import ProgressiveConfig


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 2))


def zeros(model: nn.Module) -> float:
    return float((model.get_parameter("0.weight") == 0).float().mean())


def prune_to(model: nn.Module, sparsity: float) -> None:
    prune(model, PruningConfig(sparsity=sparsity))


CONFIG = ProgressiveConfig(sparsity=0.8, initial_sparsity=0.2, rounds=4, spacing="linear")


def test_each_round_prunes_then_recovers_then_measures() -> None:
    model, calls = small_model(), []

    def recover(model: nn.Module) -> None:
        calls.append(("recover", zeros(model)))

    def evaluate(model: nn.Module) -> float:
        calls.append(("evaluate", zeros(model)))
        return 1 - zeros(model)

    rounds = progressive(model, CONFIG, prune_to, recover, evaluate)
    sparsities = [round(0.2 * number, 6) for number in (1, 2, 3, 4)]
    assert [round(done.sparsity, 6) for done in rounds] == sparsities
    assert [round(share, 4) for name, share in calls if name == "recover"] == sparsities
    assert calls[0] == ("evaluate", 0.0)
    assert all(abs(done.loss - done.sparsity) < 1e-6 and done.accepted for done in rounds)


def test_it_stops_at_the_loss_and_goes_back_to_the_last_accepted_round() -> None:
    model = small_model()
    after: dict[float, torch.Tensor] = {}

    def recover(model: nn.Module) -> None:
        model.get_parameter("1.bias").data.add_(1.0)  # state outside the targets goes back too
        after[round(zeros(model), 4)] = model.get_parameter("1.bias").detach().clone()

    limited = CONFIG.replace(max_loss=0.45)
    rounds = progressive(model, limited, prune_to, recover, lambda m: 1 - zeros(m))
    assert [done.accepted for done in rounds] == [True, True, False]
    assert round(zeros(model), 4) == 0.4
    assert torch.equal(model.get_parameter("1.bias"), after[0.4])


def test_without_an_accepted_round_the_dense_model_is_left() -> None:
    model = small_model()
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    limited = CONFIG.replace(max_loss=0.1)
    rounds = progressive(model, limited, prune_to, lambda model: None, lambda m: 1 - zeros(m))
    assert [done.accepted for done in rounds] == [False]
    assert all(torch.equal(value, dense[name]) for name, value in model.state_dict().items())
