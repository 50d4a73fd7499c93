"""Students made from their teacher: equal at equal sizes, smaller where asked, reloaded plainly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BeitForImageClassification,
    DebertaV2ForSequenceClassification,
    GPT2ForSequenceClassification,
    SwinConfig,
    SwinForImageClassification,
)

from hfcompress.distillation.student import block_influence, choose_layers, make_student
from hfcompress.distillation.weight_folding import collect_folds, feature_norms, unit_norms
from hfcompress.errors import ConfigError, TargetError
from hfcompress.models.architectures import blocks
from hfcompress.models.matrices import weight_matrix
from hfcompress.models.sublayers import sublayers
from tests.tiny_models import (
    SHRINKABLE,
    SHRINKABLE_IMAGES,
    logits,
    shrinkable_batches,
    shrinkable_model,
)

ALL = (*SHRINKABLE, "mpnet")


@pytest.mark.parametrize("family", ALL)
def test_the_teachers_own_sizes_give_the_teachers_logits(family: str) -> None:
    teacher = shrinkable_model(family)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = make_student(teacher, layers=3, hidden=32, heads=4, ffn=48)
    for batch in shrinkable_batches(family):
        assert torch.equal(logits(student, batch), logits(teacher, batch))
    assert student is not teacher
    for parameter in student.parameters():
        parameter.data.zero_()
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("family", ALL)
def test_a_student_of_any_size_is_reloaded_plainly(family: str, tmp_path: Path) -> None:
    teacher = shrinkable_model(family)
    student = make_student(teacher, layers=2, hidden=16, ffn=20)
    assert len(blocks(student)) == 2
    assert student.config.hidden_size == 16
    assert student.config.num_attention_heads == 2
    assert type(student) is type(teacher)
    assert not student.training
    student.save_pretrained(tmp_path)
    auto: Any = AutoModelForSequenceClassification
    if family in SHRINKABLE_IMAGES:
        auto = AutoModelForImageClassification if family == "vit" else type(teacher)
    again = auto.from_pretrained(tmp_path)
    for batch in shrinkable_batches(family):
        assert torch.equal(logits(again, batch), logits(student, batch))


SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip
_CLASSES = {
    "beit": BeitForImageClassification,
    "deberta-v2": DebertaV2ForSequenceClassification,
    "gpt2": GPT2ForSequenceClassification,
}


def unshrinkable(kind: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model of a family that has no uneven widths, and inputs for it."""
    torch.manual_seed(0)
    make: Any = _CLASSES[kind]  # transformers' configs have loose types
    if kind == "beit":
        sizes = SIZES | {"image_size": 16, "patch_size": 8, "use_relative_position_bias": True}
        inputs = {"pixel_values": torch.randn(2, 3, 16, 16)}
    else:
        sizes = SIZES | {"vocab_size": 60, "max_position_embeddings": 40, "pad_token_id": 0}
        ids = torch.randint(2, 50, (3, 7))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind == "deberta-v2":
        sizes |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
        sizes |= {"share_att_key": True, "position_buckets": 8}
    if kind == "gpt2":
        sizes |= {"n_inner": sizes.pop("intermediate_size")}
    return make(AutoConfig.for_model(kind, **sizes)).eval(), inputs


@pytest.mark.parametrize("kind", ["beit", "deberta-v2", "gpt2"])
@pytest.mark.filterwarnings("ignore")  # DeBERTa scripts functions as torch no longer likes
def test_the_other_families_of_the_table(kind: str, tmp_path: Path) -> None:
    teacher, inputs = unshrinkable(kind)
    with torch.no_grad():
        assert torch.equal(make_student(teacher)(**inputs).logits, teacher(**inputs).logits)
        student = make_student(teacher, layers=2, hidden=16, ffn=20)
        assert len(blocks(student)) == 2
        student.save_pretrained(tmp_path)
        again = type(teacher).from_pretrained(tmp_path)
        assert torch.equal(again(**inputs).logits, student(**inputs).logits)


@pytest.mark.parametrize(
    ("layers", "init", "chosen"),
    [
        (3, "every-other", (1, 3, 5)),
        (2, "every-other", (2, 5)),
        (1, "every-other", (5,)),
        (4, "every-other", (1, 2, 4, 5)),
        (3, "first", (0, 1, 2)),
        ((4, 0), "every-other", (4, 0)),
        (None, "first", (0, 1, 2, 3, 4, 5)),
    ],
)
def test_layers_are_copied_from_those_chosen(layers: Any, init: Any, chosen: Any) -> None:
    teacher = deep_bert()
    assert choose_layers(teacher, layers, init) == chosen
    student = make_student(teacher, layers=layers, init=init)
    parts, theirs = list(blocks(student).values()), list(blocks(teacher).values())
    for part, number in zip(parts, chosen, strict=True):
        for own, other in zip(part.parameters(), theirs[number].parameters(), strict=True):
            assert torch.equal(own, other)


def deep_bert() -> Any:
    teacher = shrinkable_model("bert")
    return make_student(teacher, layers=(0, 1, 2, 0, 1, 2))


def test_importance_keeps_the_layers_that_change_most() -> None:
    teacher = shrinkable_model("bert")
    layers = list(blocks(teacher).values())
    batches = shrinkable_batches("bert")
    # A layer that writes nothing is hardly more than its norms.
    for name, parameter in layers[1].named_parameters():
        if "output.dense" in name:
            parameter.data.zero_()
    assert choose_layers(teacher, 2, "importance", batches) == (0, 2)
    assert choose_layers(teacher, 2, "importance") == (0, 2)
    assert choose_layers(teacher, 2) == (1, 2)
    influence = block_influence(teacher, batches)
    assert min(range(3), key=influence.__getitem__) == 1
    with pytest.raises(ConfigError, match="calibration is empty"):
        block_influence(teacher, [])


def test_influence_is_one_minus_the_mean_cosine_without_padding() -> None:
    teacher = shrinkable_model("bert")
    (batch,) = shrinkable_batches("bert", batches=1)
    shown = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        states = teacher(**shown, output_hidden_states=True).hidden_states
    mask = batch["attention_mask"].bool()
    for number, found in enumerate(block_influence(teacher, [batch])):
        before, after = states[number][mask].double(), states[number + 1][mask].double()
        cosine = (before * after).sum(1) / before.norm(dim=1) / after.norm(dim=1)
        assert found == pytest.approx(1 - float(cosine.mean()), abs=1e-6)


def test_modernbert_keeps_its_first_layer_first() -> None:
    assert choose_layers(shrinkable_model("modernbert"), 2) == (0, 2)
    student = make_student(shrinkable_model("modernbert"), layers=1)
    assert len(student.config.layer_types) == 1


@pytest.mark.parametrize("family", ["bert", "modernbert", "vit"])
def test_neurons_that_do_nothing_go_first(family: str) -> None:
    """Removing units that write nothing leaves the logits as they were."""
    teacher = shrinkable_model(family)
    for part in sublayers(teacher):
        if part.kind == "neurons":
            weight_matrix(part.out(teacher))[:, ::3] = 0
    student = make_student(teacher, ffn=32)
    for batch in shrinkable_batches(family):
        torch.testing.assert_close(logits(student, batch), logits(teacher, batch))
    other = make_student(teacher, ffn=24)
    assert not torch.allclose(logits(other, batch), logits(teacher, batch), atol=1e-3)


@pytest.mark.parametrize("family", ["bert", "distilbert", "vit"])
def test_regrouped_heads_share_the_mean_of_their_patterns(family: str) -> None:
    """Two heads with the same queries and keys attend alike, so one head can stand for both."""
    teacher = shrinkable_model(family)
    for part in sublayers(teacher):
        if part.kind == "heads":
            for name in part.producers[:2]:
                linear = teacher.get_submodule(name)
                for parameter in linear.parameters():
                    pairs = parameter.data.view(2, 2, 8, -1)
                    pairs[:, 1] = pairs[:, 0]
    student = make_student(teacher, heads=2)
    assert student.config.num_attention_heads == 2
    for batch in shrinkable_batches(family):
        torch.testing.assert_close(logits(student, batch), logits(teacher, batch))


def test_hidden_states_are_folded_by_what_the_calibration_rows_say() -> None:
    """Features that are a function of those that stay lose nothing."""
    teacher, batches = shrinkable_model("bert"), shrinkable_batches("bert", batches=8, rows=8)
    basis = torch.randn(12, 32)
    for module in teacher.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.data = torch.randn(module.num_embeddings, 12) @ basis
    kept = torch.arange(24)
    fold = collect_folds(teacher, kept, batches)["bert.encoder.layer.0.attention.self.query"]
    query = next(iter(blocks(teacher).values())).get_submodule("attention.self.query")
    states = teacher.bert.embeddings(input_ids=batches[0]["input_ids"])
    whole = query(states)
    weight: Any = query.weight
    bias: Any = query.bias
    plain = states[..., :24] @ weight[:, :24].t() + bias
    folded = states[..., :24] @ fold.weight(weight).t() + fold.bias(bias, weight)
    assert (folded - whole).square().sum() < 0.02 * (plain - whole).square().sum()


def test_calibration_rows_change_a_narrower_student() -> None:
    teacher, batches = shrinkable_model("bert"), shrinkable_batches("bert")
    plain = make_student(teacher, hidden=24).state_dict()
    folded = make_student(teacher, hidden=24, calibration=batches).state_dict()
    changed = [name for name in plain if not torch.equal(plain[name], folded[name])]
    readers = [part for part in sublayers(teacher) for _ in part.producers]
    assert len(changed) == 2 * len(readers)  # a weight and a bias of each projection that reads
    wide = make_student(teacher, ffn=24, calibration=batches).state_dict()
    other = make_student(teacher, ffn=24).state_dict()
    assert all(torch.equal(wide[name], other[name]) for name in wide)


def test_importances_are_norm_products() -> None:
    teacher = shrinkable_model("bert")
    heads, neurons = sublayers(teacher)[:2]
    layer: Any = next(iter(blocks(teacher).values()))
    value, out = layer.attention.self.value.weight, layer.attention.output.dense.weight
    wanted = torch.stack(
        [value[8 * h : 8 * h + 8].norm() * out[:, 8 * h : 8 * h + 8].norm() for h in range(4)]
    )
    torch.testing.assert_close(unit_norms(teacher, heads), wanted)
    up, down = layer.intermediate.dense.weight, layer.output.dense.weight
    torch.testing.assert_close(unit_norms(teacher, neurons), up.norm(dim=1) * down.norm(dim=0))
    read: Any = 0.0
    written: Any = 0.0
    for part in blocks(teacher).values():
        for name, parameter in part.named_parameters():
            if parameter.dim() == 2:
                writes = "output.dense" in name
                squares = parameter.square().sum(1 if writes else 0)
                written, read = (written + squares, read) if writes else (written, read + squares)
    torch.testing.assert_close(feature_norms(teacher), (read * written).sqrt())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 4}, "layers is 4 and the teacher has 3"),
        ({"layers": 0}, "layers is 0"),
        ({"layers": (0, 3)}, r"layers \[0, 3\] are out of range"),
        ({"layers": ()}, "are out of range"),
        ({"hidden": 64}, "hidden is 64 and the teacher has 32"),
        ({"ffn": 49}, "ffn is 49 and the teacher has 48"),
        ({"heads": 8}, "heads is 8 and the teacher has 4"),
        ({"heads": 3}, "hidden 32 does not fit 3 heads"),
        ({"hidden": 20}, "a multiple of"),
    ],
)
def test_mistakes(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_student(shrinkable_model("bert"), **sizes)


def test_heads_cannot_be_regrouped_where_positions_belong_to_them() -> None:
    with pytest.raises(ConfigError, match="write heads: 4"):
        make_student(shrinkable_model("modernbert"), heads=2)


def test_a_family_that_is_not_known() -> None:
    teacher = shrinkable_model("bert")
    teacher.config.model_type = "homemade"
    with pytest.raises(TargetError, match="homemade"):
        make_student(teacher, layers=1)


def tiny_swin(depths: list[int]) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "num_labels": 3}
    config = SwinConfig(**sizes, depths=depths, num_heads=[1, 2], window_size=2)  # fmt: skip
    model: Any = SwinForImageClassification(config)
    return model.eval()


def test_a_swin_keeps_a_layer_of_each_stage() -> None:
    teacher, images = tiny_swin([2, 3]), torch.randn(2, 3, 16, 16)
    same, short = make_student(teacher, layers=5), make_student(teacher, layers=3)
    torch.testing.assert_close(same(images).logits, teacher(images).logits)
    assert short.config.depths == [1, 2]
    assert short(images).logits.shape == (2, 3)
    assert choose_layers(teacher, 3) == (1, 3, 4)
    assert choose_layers(teacher, 3, "first") == (0, 2, 3)
    rows = [{"pixel_values": images}]
    kept = choose_layers(teacher, 2, "importance", rows)
    assert [number < 2 for number in kept] == [True, False]
    chosen = make_student(teacher, layers=[0, 3])
    source, copy = teacher.state_dict(), chosen.state_dict()
    name = "swin.encoder.layers.1.blocks.{}.mlp.fc1.weight"
    assert torch.equal(copy[name.format(0)], source[name.format(1)])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 1}, "layers is 1 and the teacher has 2 stages; use at least 2"),
        ({"layers": [0, 1]}, r"layers \[0, 1\] do not keep a layer of each stage"),
        ({"layers": [2, 0]}, "in order; the teacher's stages are 0-1, 2-4"),
        ({"layers": 3, "hidden": 8}, "widths and heads of their own; give layers only"),
    ],
)
def test_sizes_that_a_swin_cannot_have_are_refused(sizes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_student(tiny_swin([2, 3]), **sizes)
