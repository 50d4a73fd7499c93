"""Sweeps over any module, measured by a function of the caller's or by labelled batches."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from hfcompress import QuantizationConfig, ShrinkConfig, compare_runs
from hfcompress.cli import main
from hfcompress.errors import BadInputError, ConfigError, ModelError
from hfcompress.quantization.model import QuantizedModel
from hfcompress.recipes.step_configs import FinetuneConfig
from hfcompress.sweep.evaluation import function_key
from hfcompress.sweep.module_steps import ModuleStep
from hfcompress.sweep.modules import sweep_module
from hfcompress.training.loops import evaluate, train_one_epoch
from tests.plain_networks import CourseStudent, Mlp

Batches = list[tuple[Tensor, Tensor]]
PRUNE: dict[str, Any] = {"prune": {}}


def batches(count: int = 3, seed: int = 0) -> Batches:
    """Rows whose class is that of the largest of three inputs."""
    draw = torch.Generator().manual_seed(seed)
    rows = [torch.randn(16, 12, generator=draw) for _ in range(count)]
    return [(x, x[:, :3].argmax(1)) for x in rows]


def right(model: Any) -> Tensor:
    """Whether each row is right, of a module or a quantized one."""
    model = model if isinstance(model, nn.Module) else model.source
    with torch.no_grad():
        return torch.cat([model(x).argmax(1) == y for x, y in batches(seed=1)])


def train(model: nn.Module) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(3):
        train_one_epoch(model, batches(), optimizer)


def made() -> nn.Module:
    return Mlp()


def test_rows_curve_and_page_of_a_function_that_gives_one_number(tmp_path: Path) -> None:
    model = Mlp().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = 0

    def measured(net: nn.Module) -> float:
        nonlocal calls
        calls += 1
        return evaluate(net, batches(seed=1))

    grid: dict[str, list[Any]] = {
        "prune.sparsity": [0, 0.5], "prune.scope": ["layer", "global"],
    }  # fmt: skip
    result = sweep_module(model, measured, [PRUNE], grid, output=tmp_path / "run")
    assert [row["requested_sparsity"] for row in result] == [0, 0, 0.5, 0.5]
    for row in result:
        assert row["actual_sparsity"] == pytest.approx(row["requested_sparsity"], abs=0.01)
        assert row["drop"] == pytest.approx(evaluate(model, batches(seed=1)) - row["value"])
        assert row["low"] is None
    assert {"report.html", "curve.png", "results.csv", "sweep.yaml"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    seen = calls
    again = sweep_module(model, measured, [PRUNE], grid, output=tmp_path / "run")
    assert again.rows == result.rows
    assert calls == seen  # a finished folder asks nothing
    more = {**grid, "prune.sparsity": [0, 0.5, 0.95]}
    given = (model, measured, [PRUNE], more)
    assert len(sweep_module(*given, output=tmp_path / "run", draw=False)) == 6
    assert calls == seen + 3  # the dense module, and the two points that are new
    assert "- prune:" in (tmp_path / "run" / "report.html").read_text()


def test_a_number_for_each_example_gives_intervals_and_paired_tests(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = sweep_module(
        made, right, [train, PRUNE], {"prune.sparsity": [0, 0.8]}, output=folder, draw=False
    )
    dense, pruned = result
    ours, theirs = (
        torch.tensor(json.loads(json.dumps(load(folder, row).tolist()))) for row in (pruned, dense)
    )
    assert dense["value"] == pytest.approx(theirs.mean().item())
    wilson = binomtest(int(theirs.sum()), 48).proportion_ci(0.95, method="wilson")
    assert [dense["low"], dense["high"]] == [pytest.approx(wilson.low), pytest.approx(wilson.high)]
    won, lost = int((theirs > ours).sum()), int((ours > theirs).sum())
    assert pruned["mcnemar_p"] == pytest.approx(binomtest(lost, won + lost).pvalue)
    found = compare_runs(folder)
    assert found.rows[1]["comparison"]["test"] == "McNemar"


def load(folder: Path, row: dict[str, Any]) -> Any:
    from safetensors.torch import load_file

    return load_file(folder / "predictions" / f"{row['hash']}.safetensors")["scores"]


def test_labelled_batches_measure_accuracy(tmp_path: Path) -> None:
    model = Mlp().eval()
    result = sweep_module(
        model, batches(seed=1), [{"prune": {"method": "wanda"}}],
        {"prune.sparsity": [0, 0.7]}, batches(), tmp_path / "run", draw=False,
    )  # fmt: skip
    assert result[0]["value"] == pytest.approx(evaluate(model, batches(seed=1)))
    assert result[1]["mcnemar_p"] is not None
    assert result[0]["macs"] == 12 * 32 + 32 * 24 + 24 * 3
    other = sweep_module(model, batches(seed=1), output=tmp_path / "other", draw=False)
    found = compare_runs(f"{tmp_path / 'run'}:1", f"{tmp_path / 'other'}:0")
    assert other[0]["value"] == result[0]["value"]
    assert found.rows[1]["comparison"]["n"] == 48


def test_what_trials_share_is_trained_once_and_zeros_are_held() -> None:
    trained = []

    def train_first(model: nn.Module) -> None:
        trained.append("first")
        train(model)

    def recover(model: nn.Module) -> None:
        trained.append("recover")
        train(model)

    steps: list[ModuleStep] = [train_first, PRUNE, recover]
    rows = sweep_module(made, right, steps, {"prune.sparsity": [0.5, 0.9]})
    assert trained == ["first", "recover", "recover"]
    assert [round(row["actual_sparsity"], 1) for row in rows] == [0.5, 0.9]
    assert rows[0]["drop"] == rows[1]["drop"] + rows[1]["value"] - rows[0]["value"]
    assert [step["step"] for step in rows[0]["steps"]] == ["function", "prune", "function"]
    again = sweep_module(made, right, steps, {"prune.sparsity": [0.9]})
    assert again[0]["value"] == rows[1]["value"]  # a factory is called under the seed
    seeds = sweep_module(made, lambda net: net.first.weight.detach().sum(), grid={"seed": [0, 1]})
    assert seeds[0]["value"] != seeds[1]["value"]


def test_modules_are_shrunk_and_quantized() -> None:
    images = [torch.rand(4, 3, 32, 32) for _ in range(2)]

    def agree(model: Any) -> float:
        logits = model(images[0])
        logits = logits if isinstance(logits, Tensor) else logits.logits
        return float(logits.detach().std())

    steps = [ShrinkConfig(macs=0.5), QuantizationConfig(backend="torch", mode="dynamic")]
    [row] = sweep_module(CourseStudent(), agree, steps, loader=images)
    assert row["parameters"] < 0.9 * 136_874
    assert row["compression_ratio"] > 2
    assert row["method"] == "quantize"


def broken(model: nn.Module) -> None:
    if (model.get_parameter("first.weight") == 0).float().mean() > 0.8:
        raise RuntimeError("out of patience")


def test_a_trial_that_fails_is_a_row_and_others_go_on(tmp_path: Path) -> None:
    steps: list[ModuleStep] = [PRUNE, broken]
    grid = {"prune.sparsity": [0.9, 0.5]}
    result = sweep_module(made, right, steps, grid, output=tmp_path / "run", draw=False)
    assert main(["report", str(tmp_path / "run"), "--quiet"]) == 0
    assert len(result) == 1
    assert result.failures == [({"prune.sparsity": 0.9}, "out of patience")]
    assert "1 of 2 trials failed" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"evaluate": lambda net: None}, ConfigError, "evaluate returned None, which is not a"),
        ({"evaluate": lambda net: float("nan")}, ConfigError, "evaluate returned nan"),
        ({"evaluate": lambda net: "0.5"}, ConfigError, "evaluate returned '0.5'"),
        ({"evaluate": lambda net: [0.5, float("inf")]}, ConfigError, "not finite"),
        ({"evaluate": None}, ConfigError, "evaluate is NoneType; give a function"),
        ({"evaluate": [torch.rand(2, 12)]}, BadInputError, "a batch has no labels"),
        ({"evaluate": [(torch.rand(2, 12), torch.rand(2))]}, BadInputError, "not class numbers"),
        ({"model": "a name"}, ModelError, "the model is str; give a module"),
        ({"model": lambda: None}, ModelError, "returned NoneType; return a module"),
        ({"steps": [FinetuneConfig()], "grid": ()}, ConfigError, "finetune takes transformers"),
        ({"steps": [3]}, ConfigError, r"steps\[0\] is a int, not a step"),
        ({"grid": {"prune.sparsty": [0]}}, ConfigError, "did you mean 'sparsity'"),
        ({"grid": {"steps[1].prune.sparsity": [0]}}, ConfigError, "is not a step with fields"),
        ({"steps": [QuantizationConfig(), train], "grid": ()}, ConfigError, "give it last"),
        ({"loader": []}, BadInputError, "the loader has no batches"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(
    change: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "model": Mlp(), "evaluate": right, "steps": [PRUNE],
        "grid": {"prune.sparsity": [0, 0.5]},
    }  # fmt: skip
    with pytest.raises(error, match=words):
        sweep_module(**{**given, **change}, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_module_does_not_share_a_folder(tmp_path: Path) -> None:
    sweep_module(Mlp(), right, output=tmp_path / "run", draw=False)
    with pytest.raises(BadInputError, match="contains results of another"):
        sweep_module(Mlp(), right, output=tmp_path / "run", draw=False)


def test_functions_are_told_apart_by_the_plain_values_that_they_were_given() -> None:
    def measured(model: nn.Module, metric: str = "accuracy", scale: float = 1.0) -> float:
        return scale * len(metric)

    def times(scale: float) -> Callable[[nn.Module], float]:
        return lambda model, scale=scale: measured(model, scale=scale)  # type: ignore[misc]

    given = [
        measured, partial(measured, metric="f1"), partial(measured, metric="mcc"), times(1.0),
        times(2.0),
    ]  # fmt: skip
    assert len({function_key(one) for one in given}) == len(given)
    assert function_key(times(2.0)) == function_key(times(2.0))


NUMBERS = torch.arange(6.0)


def by_rows(model: nn.Module, rows: object) -> float:
    return len([rows])


def by_global(model: nn.Module) -> float:
    return float(NUMBERS.sum())


@pytest.mark.parametrize(
    "kind",
    [
        lambda tensor: tensor,
        lambda tensor: tensor.numpy(),
        lambda tensor: [{"x": tensor}],
        lambda tensor: TensorDataset(tensor),
        lambda tensor: DataLoader(TensorDataset(tensor), batch_size=2),
        lambda tensor: DataLoader(Subset(TensorDataset(tensor), [0, 2])),
    ],
    ids=["tensor", "array", "batches", "dataset", "loader", "subset"],
)
def test_functions_are_told_apart_by_the_data_that_they_enclose(
    kind: Callable[[torch.Tensor], object],
) -> None:
    def over(rows: object) -> Callable[[nn.Module], float]:
        return lambda model: len([rows])

    first, same, other = (kind(torch.arange(6.0) + shift) for shift in (0, 0, 1))
    assert function_key(over(first)) == function_key(over(same)) != function_key(over(other))
    given = [partial(by_rows, rows=rows) for rows in (first, same, other)]
    assert function_key(given[0]) == function_key(given[1]) != function_key(given[2])


def test_objects_that_are_not_data_leave_a_functions_key_as_it_is() -> None:
    def counting(calls: list[int]) -> Callable[[nn.Module], float]:
        return lambda model: float(len(calls))

    assert function_key(counting([])) == function_key(counting([1, 2]))
    endless: list[Any] = []
    endless.append(endless)
    assert function_key(counting(endless)) == function_key(counting([1]))


def test_data_of_a_global_change_a_functions_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = function_key(by_global)
    monkeypatch.setattr(sys.modules[__name__], "NUMBERS", torch.ones(3))
    assert function_key(by_global) != before


def test_a_folder_is_not_resumed_after_its_data_changed(tmp_path: Path) -> None:
    def run(scores: list[float]) -> list[float]:
        rows = torch.tensor(scores)
        output = tmp_path / "run"
        found = sweep_module(model, lambda net: float(rows.mean()), output=output, draw=False)
        return [row["value"] for row in found.rows]

    model = Mlp()
    assert run([1.0, 0.0]) == run([1.0, 0.0]) == [0.5]
    with pytest.raises(BadInputError, match="contains results of another recipe, model or data"):
        run([1.0, 1.0])


def test_quantized_models_are_what_evaluate_is_given() -> None:
    kinds = []

    def kind(model: Any) -> float:
        kinds.append(type(model))
        return 1.0

    sweep_module(Mlp(), kind, [QuantizationConfig(backend="torch")], loader=batches())
    assert kinds[-1] is QuantizedModel
