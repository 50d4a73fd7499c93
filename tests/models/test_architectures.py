"""Which modules are compressible, targets by default, named by patterns, or blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    BertPreTrainedModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.pytorch_utils import Conv1D

from hfcompress.errors import TargetError
from hfcompress.models.architectures import (
    FAMILIES,
    base_prefix,
    blocks,
    compressible_modules,
    default_targets,
    family_of,
    select_modules,
)
from hfcompress.models.matrices import weight_matrix, write_matrix

TINY: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
}


from_config: Any = AutoModel.from_config  # has no types
conv1d: Any = Conv1D


def tiny_bert() -> Any:
    return BertForSequenceClassification(BertConfig(**TINY))


def test_bert_targets_are_the_encoders_linears() -> None:
    targets = default_targets(tiny_bert())
    assert len(targets) == 2 * 6
    assert all(name.startswith("bert.encoder.layer.") for name in targets)


def test_every_linear_is_compressible() -> None:
    names = list(compressible_modules(tiny_bert()))
    assert len(names) == 2 * 6 + 2
    assert names[-2:] == ["bert.pooler.dense", "classifier"]


def test_patch_embedding_and_classifier_of_vit_are_left_alone() -> None:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = ViTForImageClassification(config)
    assert any("patch" in name for name in compressible_modules(model))
    assert set(default_targets(model)) == {
        name for name, module in model.named_modules() if isinstance(module, nn.Linear)
    } - {"classifier"}


def test_the_head_of_a_class_of_ones_own_is_what_lies_outside_the_only_inner_model() -> None:
    class Mine(BertPreTrainedModel):  # type: ignore[no-untyped-call]
        def __init__(self, config: BertConfig) -> None:
            super().__init__(config)
            self.encoder = BertModel(config)
            self.mid, self.out = nn.Linear(16, 16), nn.Linear(16, 2)

    model = Mine(BertConfig(**TINY))
    assert base_prefix(model) == "encoder"
    assert all(name.startswith("encoder.encoder.layer.") for name in default_targets(model))
    assert next(iter(blocks(model))) == "encoder.encoder.layer.0"


def test_last_linear_of_a_plain_module_is_its_head() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 2))
    assert list(default_targets(model)) == ["0", "2"]


def test_tied_weights_appear_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert list(compressible_modules(model)) == ["0", "2"]


def test_a_weight_tied_to_an_embedding_is_no_default_target() -> None:
    base = BertForMaskedLM(BertConfig(**TINY))
    model = nn.ModuleDict({"lm": base, "last": nn.Linear(2, 2)})
    assert "lm.cls.predictions.decoder" in compressible_modules(model)
    assert "lm.cls.predictions.decoder" not in default_targets(model)


@pytest.mark.parametrize(
    ("patterns", "count"),
    [(["Linear"], 14), (["classifier"], 1), (["*.attention.*"], 8), (["query", "*.key"], 4)],
)
def test_patterns(patterns: list[str], count: int) -> None:
    assert len(select_modules(tiny_bert(), patterns)) == count


def test_exclude_takes_out_of_the_targets() -> None:
    assert len(select_modules(tiny_bert(), None, ["*.attention.*"])) == 4


def test_a_pattern_that_matches_nothing_names_the_nearest() -> None:
    with pytest.raises(TargetError, match=r"'clasifier' matches no module.*'classifier'"):
        select_modules(tiny_bert(), ["clasifier"])
    with pytest.raises(TargetError, match="matches no module"):
        select_modules(tiny_bert(), None, ["nothing.*"])


def test_nothing_left_is_refused() -> None:
    with pytest.raises(TargetError, match="no module left"):
        select_modules(tiny_bert(), ["Linear"], ["Linear"])
    with pytest.raises(TargetError, match="no module left"):
        select_modules(nn.LayerNorm(3))


def _tiny_config(model_type: str) -> Any:
    sizes = dict(TINY)
    if model_type == "distilbert":
        sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50}
    if model_type == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50}
    if model_type == "modernbert":
        special = {f"{kind}_token_id": 0 for kind in ("pad", "eos", "bos", "cls", "sep")}
        sizes |= special
    if model_type == "swin":
        sizes = {"embed_dim": 16, "depths": [2], "num_heads": [2], "mlp_ratio": 2.0,
                 "image_size": 16, "patch_size": 4, "window_size": 4}  # fmt: skip
    return AutoConfig.for_model(model_type, **sizes)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_the_table_names_real_modules(model_type: str) -> None:
    with torch.device("meta"):
        model = from_config(_tiny_config(model_type))
    family = family_of(model)
    assert family is not None
    layers = blocks(model)
    assert len(layers) == 2
    for layer in layers.values():
        inputs, outputs = [], []
        for path in (family.query, family.key, family.value, family.ffn_in):
            inputs.append(weight_matrix(layer.get_submodule(path)).shape[1])
        for path in (family.out, family.ffn_out):
            outputs.append(weight_matrix(layer.get_submodule(path)).shape[0])
        assert set(inputs) == set(outputs) == {16}
        ffn = weight_matrix(layer.get_submodule(family.ffn_in)).shape[0]
        assert ffn == weight_matrix(layer.get_submodule(family.ffn_out)).shape[1] * (
            2 if family.gated else 1
        )
    assert getattr(model.config, family.heads) in (2, [2])  # Swin has a list, by stage


def test_blocks_of_a_model_with_a_head_carry_full_names() -> None:
    assert list(blocks(tiny_bert())) == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    assert list(blocks(BertModel(BertConfig(**TINY)))) == ["encoder.layer.0", "encoder.layer.1"]


def test_blocks_of_an_unknown_family_are_the_heaviest_list() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
            self.stages = nn.ModuleList([nn.Sequential(nn.Linear(8, 8)) for _ in range(3)])

    assert list(blocks(Net())) == ["stages.0", "stages.1", "stages.2"]
    assert blocks(nn.Linear(2, 2)) == {}


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(6, 4), (4, 6)),
        (nn.Conv2d(6, 4, 3, groups=2), (4, 27)),
        (nn.Conv2d(4, 4, 3, groups=4), (4, 9)),
        (conv1d(4, 6), (4, 6)),
    ],
)
def test_a_weight_as_outputs_by_inputs_and_back(module: nn.Module, shape: tuple[int, int]) -> None:
    matrix = weight_matrix(module)
    assert matrix.shape == shape
    new = torch.arange(matrix.numel(), dtype=torch.float32).reshape(shape)
    write_matrix(module, new)
    assert torch.equal(weight_matrix(module), new)


def test_conv1d_of_gpt2_is_a_target() -> None:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50)
    assert len(default_targets(GPT2ForSequenceClassification(config))) == 4
