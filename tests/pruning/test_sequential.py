"""Each layer's statistics come from the model as pruned so far, and its goal from the dense one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hfcompress.calibration.batches import Calibration
from hfcompress.calibration.moments import weight_of
from hfcompress.models.architectures import default_targets
from hfcompress.pruning.sequential import layer_by_layer
from tests.tiny_models import lively_bert, repadded, sentence_batches


def zero_half(module: nn.Module) -> None:
    """Some pruning: the first half of the inputs is dropped."""
    weight = weight_of(module)
    weight.data[:, : weight.shape[1] // 2] = 0


def seen(model: nn.Module, name: str, batches: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Inputs and outputs of a module at real tokens, by plain forward passes."""
    inputs, outputs = [], []

    def note(_: nn.Module, args: Any, output: Tensor) -> None:
        inputs.append(args[0])
        outputs.append(output)

    handle = model.get_submodule(name).register_forward_hook(note)
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    masks = [batch["attention_mask"].bool() for batch in batches]
    return tuple(
        torch.cat([item[mask] for item, mask in zip(found, masks, strict=True)]).double()
        for found in (inputs, outputs)
    )  # type: ignore[return-value]


@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_inputs_are_the_pruned_models_and_outputs_the_dense_ones(memory: int) -> None:
    model, batches = lively_bert(), sentence_batches()
    dense = copy.deepcopy(model)
    modules = default_targets(model)
    names: list[str] = []
    for step in layer_by_layer(
        model, modules, Calibration(batches), dense_outputs=True, memory=memory
    ):
        for name, moments in step.items():
            inputs, _ = seen(model, name, batches)  # the model as pruned so far
            _, outputs = seen(dense, name, batches)
            assert moments.cross is not None
            assert moments.output is not None
            n = len(inputs)
            for found, expected in (
                (moments.gram[0], inputs.T @ inputs / n),
                (moments.mean[0], inputs.mean(0)),
                (moments.cross[0], outputs.T @ inputs / n),
                (moments.output[0], outputs.mean(0)),
            ):
                torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
        names += step
        for name in step:
            zero_half(modules[name])
    assert sorted(names) == sorted(modules)
    for name, module in modules.items():  # every dense weight was put back
        weight = weight_of(module)
        assert int((weight == 0).sum()) == weight.numel() // 2, name


def test_without_the_dense_stream_there_is_no_goal() -> None:
    model = lively_bert()
    steps = layer_by_layer(
        model,
        default_targets(model),
        Calibration(sentence_batches()),
        dense_outputs=False,
        memory=1 << 30,
    )
    assert all(moments.cross is None for step in steps for moments in step.values())


def test_padding_never_counts() -> None:
    found = []
    for token in (0, 9):
        model = lively_bert()
        modules = default_targets(model)
        calibration = Calibration(repadded(sentence_batches(), token))
        for step in layer_by_layer(model, modules, calibration, dense_outputs=True, memory=1 << 30):
            for name in step:
                zero_half(modules[name])
            last = step
        found.append(next(iter(last.values())))
    torch.testing.assert_close(found[0].gram, found[1].gram)
    torch.testing.assert_close(found[0].cross, found[1].cross)


def test_layers_outside_the_blocks_come_in_their_turn() -> None:
    model, batches = lively_bert(), sentence_batches()
    names = ["bert.encoder.layer.1.output.dense", "bert.pooler.dense", "classifier"]
    modules = {name: model.get_submodule(name) for name in names}
    order = []
    for step in layer_by_layer(
        model, modules, Calibration(batches), dense_outputs=False, memory=1 << 30
    ):
        for name, moments in step.items():
            order.append(name)
            if name == "classifier":  # reads one vector a row, made by what was pruned before
                with torch.no_grad():
                    pooled = torch.cat(
                        [
                            model.bert(
                                input_ids=batch["input_ids"],
                                attention_mask=batch["attention_mask"],
                            ).pooler_output
                            for batch in batches
                        ]
                    )
                torch.testing.assert_close(moments.mean[0], pooled.mean(0))
            zero_half(modules[name])
    assert order == names


class Twice(nn.Module):
    """No chain of blocks; one layer is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(self.shared(self.shared(x).relu()))  # type: ignore[no-any-return]


def test_a_model_without_blocks_and_a_layer_called_twice() -> None:
    torch.manual_seed(0)
    model = Twice()
    dense = copy.deepcopy(model)
    x = torch.randn(5, 4)
    modules = {"stem": model.stem, "shared": model.shared, "last": model.last}
    for step in layer_by_layer(
        model, modules, Calibration([{"x": x}]), dense_outputs=True, memory=1 << 30
    ):
        ((name, moments),) = step.items()
        with torch.no_grad():
            first, first_dense = model.stem(x), dense.stem(x)
            second, second_dense = model.shared(first).relu(), dense.shared(first_dense).relu()
            if name == "shared":
                assert moments.count == 10
                mean = torch.cat([first, second]).mean(0)
                torch.testing.assert_close(moments.mean[0], mean)
                goal = torch.cat([dense.shared(first_dense), dense.shared(second_dense)]).mean(0)
                assert moments.output is not None
                torch.testing.assert_close(moments.output[0], goal)
        zero_half(modules[name])
