"""What is collected, from which tokens, and when it is collected again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hfcompress.calibration.batches import Calibration, as_calibration
from hfcompress.calibration.importance import importance
from hfcompress.calibration.moments import input_rows, output_rows
from hfcompress.errors import CalibrationError
from hfcompress.models.architectures import default_targets
from tests.tiny_models import lively_bert, repadded, sentence_batches

NAME = "bert.encoder.layer.0.attention.self.query"


def first_inputs(model: Any, batches: list[dict[str, Tensor]]) -> Tensor:
    """Inputs of the first layer's query at real tokens, float64."""
    found = []
    for batch in batches:
        with torch.no_grad():
            hidden = model.bert.embeddings(input_ids=batch["input_ids"])
        found.append(hidden[batch["attention_mask"].bool()])
    return torch.cat(found).double()


def test_moments_are_those_of_real_tokens() -> None:
    model, batches = lively_bert(), sentence_batches()
    moments = Calibration(batches).moments(model, default_targets(model))[NAME]
    inputs = first_inputs(model, batches)
    assert moments.count == len(inputs) == sum(int(b["attention_mask"].sum()) for b in batches)
    gram, mean = inputs.T @ inputs / len(inputs), inputs.mean(0)
    torch.testing.assert_close(moments.gram[0].double(), gram, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.mean[0].double(), mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.norm[0].double(), inputs.square().mean(0).sqrt())


def test_what_stands_in_the_padding_never_counts() -> None:
    model, batches = lively_bert(), sentence_batches()
    modules = default_targets(model)
    one, other = Calibration(repadded(batches, 0)), Calibration(repadded(batches, 7))
    for first, second in zip(
        one.moments(model, modules).values(), other.moments(model, modules).values(), strict=True
    ):
        torch.testing.assert_close(first.gram, second.gram)
    for squared in (True, False):
        first_gradients = one.gradients(model, modules, squared=squared)
        second_gradients = other.gradients(model, modules, squared=squared)
        for name in modules:
            torch.testing.assert_close(first_gradients[name], second_gradients[name])
    mine = importance(model, modules, one, 0)
    others = importance(model, modules, other, 0)
    for name in modules:
        torch.testing.assert_close(mine[name].outputs, others[name].outputs)
        torch.testing.assert_close(mine[name].tokens, others[name].tokens)


def test_squared_norms_are_the_grams_diagonal() -> None:
    model, calibration = lively_bert(), Calibration(sentence_batches())
    modules = default_targets(model)
    moments = calibration.moments(model, modules)
    for name, squares in calibration.squared_norms(model, modules).items():
        torch.testing.assert_close(squares, moments[name].gram.diagonal(dim1=1, dim2=2))


@pytest.mark.parametrize("squared", [True, False])
def test_gradients_are_those_of_single_rows(squared: bool) -> None:
    model, batches = lively_bert(), sentence_batches(batches=2, rows=2)
    module = model.get_submodule(NAME)
    found = Calibration(batches).gradients(model, {NAME: module}, squared=squared)[NAME]
    total = torch.zeros_like(module.weight)
    for batch in batches:
        for row in range(2):
            single = {key: value[row : row + 1] for key, value in batch.items()}
            model.zero_grad()
            model(**single).loss.backward()
            total += module.weight.grad.square() if squared else module.weight.grad.abs()
    torch.testing.assert_close(found, total / 4)


def test_importance_of_two_classes_is_the_margins_gradient() -> None:
    model, batches = lively_bert(), sentence_batches(batches=1, rows=1)
    found = importance(model, {"classifier": model.classifier}, Calibration(batches), 0)
    values = found["classifier"].outputs[0]
    torch.testing.assert_close(values[0], values[1])  # +1 and -1 times one random number
    assert float(values[0]) > 0


def test_each_rows_tokens_share_its_gradient() -> None:
    model, batches = lively_bert(), sentence_batches(batches=2)
    name = "bert.encoder.layer.1.output.dense"  # behind it only the first token is read
    found = importance(model, {name: model.get_submodule(name)}, Calibration(batches), 0)[name]
    for batch, shares in zip(batches, found.tokens, strict=True):
        mask = batch["attention_mask"].bool()
        table = torch.zeros(mask.shape)
        table[mask] = shares
        assert float(shares.mean()) == pytest.approx(1.0)
        torch.testing.assert_close(table[:, 0], torch.full((len(mask),), float(mask.sum()) / 6))
        assert not bool(table[:, 1:].any())


def test_statistics_are_collected_once_for_the_same_weights() -> None:
    model, calibration = lively_bert(), Calibration(sentence_batches())
    modules = default_targets(model)
    first = calibration.moments(model, modules)
    assert calibration.moments(model, modules) is first
    assert calibration.moments(lively_bert(), default_targets(lively_bert())) is first
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[0, 0] += 1
    assert calibration.moments(model, modules) is not first


def test_the_model_comes_back_in_its_own_mode() -> None:
    model = lively_bert()
    model.train()
    model.bert.pooler.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    calibration = Calibration(sentence_batches())
    calibration.gradients(model, default_targets(model), squared=True)
    assert model.training
    assert not model.bert.pooler.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("padding", "mode"), [(1, "zeros"), ("same", "zeros"), (1, "reflect")])
def test_a_convolution_is_a_product_of_its_unfolded_input(
    groups: int, padding: Any, mode: Any
) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(
        4, 8, 3, groups=groups, padding=padding, padding_mode=mode, dilation=1, bias=False
    )
    images = torch.randn(2, 4, 6, 5)
    inputs, outputs = input_rows(module, images, None), output_rows(module, module(images), None)
    weight = module.weight.view(groups, 8 // groups, -1)
    torch.testing.assert_close(inputs @ weight.mT, outputs, rtol=1e-4, atol=1e-5)


def test_the_first_rows_are_used() -> None:
    batches = sentence_batches(batches=3, rows=6)
    calibration = Calibration(batches, rows=8)
    assert calibration.rows == 8
    assert torch.equal(calibration.batches[1]["input_ids"], batches[1]["input_ids"][:2])
    assert calibration.first(5) is calibration.first(5)
    assert calibration.first(5).rows == 5


def test_fewer_rows_than_asked_are_refused() -> None:
    with pytest.raises(CalibrationError, match="asks for 19 rows and there are 18"):
        Calibration(sentence_batches(), rows=19)


def test_no_rows_are_refused() -> None:
    with pytest.raises(CalibrationError, match="empty"):
        Calibration([])


def test_nothing_but_padding_is_refused() -> None:
    batches = [
        {**b, "attention_mask": torch.zeros_like(b["attention_mask"])} for b in sentence_batches()
    ]
    with pytest.raises(CalibrationError, match="no token that is not padding"):
        Calibration(batches)


def test_rows_of_padding_are_left_out() -> None:
    batches = sentence_batches(batches=2)
    empty = {**batches[0], "attention_mask": torch.zeros_like(batches[0]["attention_mask"])}
    model = lively_bert()
    modules = {NAME: model.get_submodule(NAME)}
    with_empty, without = Calibration([*batches, empty]), Calibration(batches)
    assert with_empty.moments(model, modules)[NAME].count == (
        without.moments(model, modules)[NAME].count
    )
    assert torch.equal(
        with_empty.gradients(model, modules, squared=True)[NAME],
        without.gradients(model, modules, squared=True)[NAME],
    )


def test_missing_labels_are_named() -> None:
    batches = [{k: v for k, v in b.items() if k != "labels"} for b in sentence_batches()]
    model = lively_bert()
    with pytest.raises(CalibrationError, match="no 'labels'"):
        Calibration(batches).gradients(model, default_targets(model), squared=True)


def test_nan_activations_name_the_layer() -> None:
    model = lively_bert()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.LayerNorm.weight.fill_(float("nan"))
    modules = default_targets(model)
    with pytest.raises(CalibrationError, match=r"inputs of bert\.encoder\.layer\.1\.\S+ are NaN"):
        Calibration(sentence_batches()).moments(model, modules)
    with pytest.raises(CalibrationError, match="NaN"):
        Calibration(sentence_batches()).gradients(model, modules, squared=True)


def test_a_layer_that_is_never_called_is_named() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x)
            return out

    model = Idle()
    with pytest.raises(CalibrationError, match="idle is never called"):
        Calibration([{"x": torch.ones(2, 3)}]).moments(
            model, {"used": model.used, "idle": model.idle}
        )


def test_spread_takes_rows_from_all_over() -> None:
    rows = Calibration(sentence_batches(batches=8, rows=4))
    few = rows.spread(12)
    assert few.rows == 12
    assert [torch.equal(few.batches[1]["input_ids"], b["input_ids"]) for b in rows.batches] == [
        False, False, True, False, False, False, False, False
    ]  # fmt: skip
    assert rows.spread(100).rows == 32
    assert rows.spread(1).rows == 1


def test_batches_of_a_loader_have_names() -> None:
    images = [{"pixel_values": torch.randn(3, 4, 4)} for _ in range(6)]
    loader: DataLoader[Any] = DataLoader(images, 2)  # type: ignore[arg-type]
    assert Calibration(loader).rows == as_calibration(loader, lively_bert()).rows == 6
    given = Calibration(loader)
    assert as_calibration(given, lively_bert()) is given
    pairs = DataLoader(TensorDataset(torch.randn(4, 3), torch.zeros(4)), 2)
    places = Calibration(pairs)
    layer = nn.Linear(3, 2)
    named = as_calibration(places, layer)
    assert [set(batch) for batch in named.batches] == [{"input", "labels"}] * 2
    assert as_calibration(places, layer) is named
    with pytest.raises(CalibrationError, match="reads its inputs by name, and a batch is a tuple"):
        as_calibration(places, lively_bert())
    with pytest.raises(CalibrationError, match=r"must be dicts of tensors .*, not str"):
        Calibration(["a text"])
