import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BeitConfig,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    ModernBertConfig,
    MPNetConfig,
    MPNetForSequenceClassification,
    RobertaConfig,
    ViTConfig,
)

from hfcompress.distillation.config import DistillationLossConfig, DistillationTrainingConfig
from hfcompress.distillation.layer_losses import (
    attention_loss,
    hidden_state_loss,
    value_relation_loss,
)
from hfcompress.distillation.losses import kl_divergence, logits_mse
from hfcompress.distillation.teacher_loss import TeacherLoss
from hfcompress.distillation.teacher_outputs import TeacherOutputs
from hfcompress.distillation.teachers import as_teacher
from hfcompress.errors import ConfigError, DataError, ModelError, TargetError


def bert(seed: int, layers: int = 2) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    for name, parameter in model.named_parameters():
        # States of another size than 1, and logits far enough apart for a temperature to matter.
        scale = {"LayerNorm.weight": 1.5, "classifier.weight": 50.0}
        parameter.data.mul_(next((s for end, s in scale.items() if name.endswith(end)), 1.0))
    model.train(False)
    return model


def batch() -> dict[str, Tensor]:
    ids = torch.randint(1, 50, (4, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 6, [1] * 5 + [0], [1] * 4 + [0] * 2, [1] * 3 + [0] * 3])
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 0, 1])}


def test_terms_are_the_weighted_losses_of_both_models_outputs() -> None:
    student, teacher = bert(0), bert(1)
    config = DistillationLossConfig(
        temperature=3.0, soft_weight=0.5, logits_weight=2.0, hidden_weight=4.0
    )
    inputs = batch()
    with TeacherLoss(student, teacher, config) as terms:
        outputs = student(**inputs)
        found = terms(student, inputs, outputs)
    taught = teacher(**inputs, output_hidden_states=True)
    own = student(**inputs, output_hidden_states=True)
    distances = [
        hidden_state_loss(s, t, inputs["attention_mask"], distance="normalized_mse")
        for s, t in zip(own.hidden_states[1:], taught.hidden_states[1:], strict=True)
    ]
    torch.testing.assert_close(
        found,
        {
            "soft_loss": 0.5 * kl_divergence(own.logits, taught.logits, 3.0),
            "logits_loss": 2.0 * logits_mse(own.logits, taught.logits),
            "hidden_loss": 4.0 * torch.stack(distances).sum(),
        },
    )


def test_a_copy_of_the_teacher_loses_nothing() -> None:
    config = DistillationLossConfig(logits_weight=1.0, hidden_weight=1.0, hidden_distance="cosine")
    student, inputs = bert(0), batch()
    terms = TeacherLoss(student, bert(0), config)(student, inputs, student(**inputs))
    assert all(abs(term.item()) < 1e-5 for term in terms.values())


@pytest.mark.parametrize("distance", ["mse", "normalized_mse", "cosine"])
def test_gradients_reach_every_layer_of_the_student_only(distance: str) -> None:
    student, teacher, inputs = bert(0), bert(1), batch()
    fields = {"soft_weight": 0.0, "hidden_weight": 1.0, "hidden_distance": distance}
    terms = TeacherLoss(student, teacher, DistillationLossConfig.from_dict(fields))
    terms(student, inputs, student(**inputs))["hidden_loss"].backward()  # type: ignore[no-untyped-call]
    for number in range(2):
        gradient = student.get_parameter(f"bert.encoder.layer.{number}.output.dense.weight").grad
        assert gradient is not None
        assert gradient.any()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_distance_and_the_precision_change_the_loss() -> None:
    student, inputs = bert(0), batch()

    def total(**fields: object) -> float:
        config = DistillationLossConfig.from_dict({"hidden_weight": 1.0, **fields})
        with TeacherLoss(student, bert(1), config) as terms:
            values = terms(student, inputs, student(**inputs))
        return sum(term.item() for term in values.values())

    totals = [total(hidden_distance=name) for name in ("mse", "normalized_mse", "cosine")]
    totals += [total(teacher_precision="bf16"), total(temperature=1.0)]
    assert len(set(totals)) == 5


def test_weights_rounded_once_give_what_autocast_does() -> None:
    model, inputs = bert(1), batch()
    before = copy.deepcopy(model.state_dict())
    teacher = as_teacher(model, "bf16", hidden=[0, 1])
    for change in (0.0, 0.1):
        with torch.no_grad():  # changes are noticed
            model.classifier.weight.add_(change)
        answer = teacher.ask(inputs)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            expected = model(**inputs, output_hidden_states=True)
        assert torch.equal(answer.logits, expected.logits)
        for number in range(2):
            assert torch.equal(answer.hidden_states[number], expected.hidden_states[number + 1])
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    del before["classifier.weight"]
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value)


def test_the_hooks_are_gone_at_the_end() -> None:
    student, teacher = bert(0), bert(1)
    with TeacherLoss(student, teacher, DistillationLossConfig(hidden_weight=1.0)):
        assert any(module._forward_hooks for module in student.modules())
    for model in (student, teacher):
        assert not any(module._forward_hooks for module in model.modules())


def test_models_that_cannot_be_compared_layer_by_layer_are_refused() -> None:
    config = DistillationLossConfig(hidden_weight=1.0)
    with pytest.raises(ModelError, match="no repeated layers"):
        TeacherLoss(nn.Linear(2, 2), bert(1), config)
    with pytest.raises(ModelError, match="Stack returns no attention maps"):
        TeacherLoss(Stack(), Stack(), DistillationLossConfig(attention_weight=1.0))
    with pytest.raises(TargetError, match="where Stack keeps its attention is not known"):
        TeacherLoss(Stack(), Stack(), DistillationLossConfig(value_weight=1.0))


@pytest.mark.parametrize(
    ("layer_map", "message"),
    [({0: 3}, r"layer_map \{0: 3\} is out of range: the teacher has 3 layers, 0 to 2"),
     ({2: 0}, r"the student has 2 layers, 0 to 1"), ({0: -1}, "out of range"),
     ({}, "layer_map is empty")],
)  # fmt: skip
def test_a_layer_map_out_of_range_is_refused(layer_map: dict[int, int], message: str) -> None:
    config = DistillationLossConfig(hidden_weight=1.0, layer_map=layer_map)
    with pytest.raises(ConfigError, match=message):
        TeacherLoss(bert(0), bert(1, layers=3), config)


def test_layers_follow_the_map_or_evenly_spaced_ones() -> None:
    student, teacher, inputs = bert(0), bert(1, layers=4), batch()
    own = student(**inputs, output_hidden_states=True).hidden_states[1:]
    taught = teacher(**inputs, output_hidden_states=True).hidden_states[1:]
    for given, pairs in ((None, {0: 1, 1: 3}), ({1: 0}, {1: 0})):
        config = DistillationLossConfig(
            soft_weight=0, hidden_weight=1.0, hidden_distance="mse", layer_map=given
        )
        with TeacherLoss(student, teacher, config) as terms:
            found = terms(student, inputs, student(**inputs))
        distances = [
            hidden_state_loss(own[s], taught[t], inputs["attention_mask"]) for s, t in pairs.items()
        ]
        torch.testing.assert_close(found["hidden_loss"], torch.stack(distances).sum())


def test_attention_maps_and_values_are_those_of_the_model() -> None:
    student, teacher, inputs = bert(0), bert(1, layers=3), batch()
    config = DistillationLossConfig(soft_weight=0, attention_weight=2.0, value_weight=3.0)
    with TeacherLoss(student, teacher, config) as terms:
        assert student.config._attn_implementation == "eager"
        found = terms(student, inputs, student(**inputs))
    for model in (student, teacher):
        assert model.config._attn_implementation == "sdpa"
        model.set_attn_implementation("eager")
    mine, theirs = (model(**inputs, output_attentions=True) for model in (student, teacher))
    mask = inputs["attention_mask"]
    maps = [
        attention_loss(mine.attentions[s], theirs.attentions[t], mask) for s, t in ((0, 1), (1, 2))
    ]
    torch.testing.assert_close(found["attention_loss"], 2.0 * torch.stack(maps).sum())
    values = []
    for model, layer in ((student, 1), (teacher, 2)):
        hidden = model(**inputs, output_hidden_states=True).hidden_states[layer]
        projection = model.get_submodule(f"bert.encoder.layer.{layer}.attention.self.value")
        values.append(projection(hidden))
    relation = value_relation_loss(values[0], values[1], heads=2, mask=mask)
    torch.testing.assert_close(found["value_loss"], 3.0 * relation)
    one = DistillationLossConfig(soft_weight=0, value_weight=3.0, relation_heads=1)
    with TeacherLoss(student, teacher, one) as terms:
        assert terms(student, inputs, student(**inputs))["value_loss"] != found["value_loss"]


def test_gradients_of_attention_maps_and_values_reach_the_student() -> None:
    for name in ("attention_weight", "value_weight"):
        student, inputs = bert(0), batch()
        config = DistillationLossConfig.from_dict({"soft_weight": 0, name: 1.0})
        with TeacherLoss(student, bert(1), config) as terms:
            (term,) = terms(student, inputs, student(**inputs)).values()
        term.backward()  # type: ignore[no-untyped-call]
        part = "query" if name == "attention_weight" else "value"
        gradient = student.get_parameter(f"bert.encoder.layer.1.attention.self.{part}.weight").grad
        assert gradient is not None
        assert gradient.any()


def test_several_teachers_count_by_their_weights() -> None:
    student, inputs = bert(0), batch()
    teachers = [bert(1), bert(2)]

    def terms(teacher: Any, weights: tuple[float, ...] | None = None) -> dict[str, Tensor]:
        config = DistillationTrainingConfig(
            alpha=1.0, hidden_weight=1.0, logits_weight=1.0, teacher_weights=weights
        )
        with TeacherLoss(student, teacher, config) as loss:
            return loss(student, inputs, student(**inputs))

    first, second = (terms(teacher) for teacher in teachers)
    for weights, share in (((3.0, 1.0), 0.75), (None, 0.5)):
        both = terms(teachers, weights)
        for name, value in both.items():
            torch.testing.assert_close(value, share * first[name] + (1 - share) * second[name])
    with pytest.raises(ConfigError, match="1 teacher_weights for 2 teachers"):
        terms(teachers, (1.0,))
    with pytest.raises(ConfigError, match="teacher is an empty list"):
        terms([])


class Table:
    """Kept outputs whose rows are padded to more tokens than a batch has."""

    def __init__(self, outputs: TeacherOutputs) -> None:
        self.outputs = outputs

    def lookup(self, rows: Tensor) -> TeacherOutputs:
        states = {
            layer: torch.cat([state, torch.full_like(state, 9.0)], 1)[rows]
            for layer, state in self.outputs.hidden_states.items()
        }
        return TeacherOutputs(self.outputs.logits[rows], hidden_states=states)


def test_functions_and_kept_outputs_teach_as_the_model_does() -> None:
    student, teacher, inputs = bert(0), bert(1), batch()
    config = DistillationLossConfig(hidden_weight=1.0, layer_map={0: 0, 1: 1})
    seen: list[set[str]] = []

    def function(shown: Mapping[str, Tensor]) -> TeacherOutputs:
        seen.append(set(shown))
        read = {name: shown[name] for name in ("input_ids", "attention_mask")}
        outputs = teacher(**read, output_hidden_states=True)
        states = dict(enumerate(outputs.hidden_states[1:]))
        return TeacherOutputs(outputs.logits.detach(), hidden_states=states)

    order = torch.tensor([2, 0, 3, 1])
    rows = {**{name: value[order] for name, value in inputs.items()}, "row": order}
    kept = Table(function(inputs))

    def terms(teacher: Any, config: DistillationLossConfig = config) -> dict[str, Tensor]:
        with TeacherLoss(student, teacher, config) as loss:
            outputs = student(**{name: value for name, value in rows.items() if name != "row"})
            return loss(student, rows, outputs)

    expected = terms(teacher)
    torch.testing.assert_close(terms(function), expected)
    assert seen[-1] == {"input_ids", "attention_mask", "row"}
    torch.testing.assert_close(terms(kept), expected)
    for answer in (kept.outputs.logits, kept.outputs.logits.numpy()):
        plain = terms(lambda shown, a=answer: a[shown["row"]], DistillationLossConfig())
        torch.testing.assert_close(plain["soft_loss"], expected["soft_loss"])
    del rows["row"]
    with pytest.raises(DataError, match="no column 'row'"):
        terms(kept)
    with pytest.raises(ConfigError, match="give layer_map"):
        terms(function, DistillationLossConfig(hidden_weight=1.0))
    with pytest.raises(ModelError, match="the teacher returned no attention map for layer 0"):
        terms(function, DistillationLossConfig(attention_weight=1.0, layer_map={0: 0}))
    with pytest.raises(ConfigError, match="must be a model, a function or kept outputs, not str"):
        terms("bert-base-uncased")


def test_a_teacher_reads_its_own_columns_where_there_are_any() -> None:
    student, teacher, inputs = bert(0), bert(1), batch()
    other = {f"teacher_{name}": value.flip(0) for name, value in inputs.items() if name != "labels"}
    with TeacherLoss(student, teacher, DistillationLossConfig()) as terms:
        found = terms(student, {**inputs, **other}, student(**inputs))
    logits = teacher(inputs["input_ids"].flip(0), inputs["attention_mask"].flip(0)).logits
    expected = kl_divergence(student(**inputs).logits, logits, 4.0)
    torch.testing.assert_close(found["soft_loss"], expected)


def test_the_teacher_is_in_evaluation_mode_and_stays_as_it_was() -> None:
    student, teacher, inputs = bert(0), bert(1).train(), batch()
    before = copy.deepcopy(teacher.state_dict())
    with TeacherLoss(student, teacher, DistillationLossConfig(hidden_weight=1.0)) as terms:
        assert not teacher.training
        sum(terms(student, inputs, student(**inputs)).values()).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_other_labels_or_another_order_are_refused() -> None:
    student, teacher = bert(0), bert(1)
    student.config.id2label = {0: "negative", 1: "positive"}
    TeacherLoss(student, teacher, DistillationLossConfig())  # LABEL_0 and LABEL_1 are placeholders
    teacher.config.id2label = {0: "positive", 1: "negative"}
    message = "student's labels are negative, positive and the teacher's positive, negative; give"
    with pytest.raises(ModelError, match=message):
        TeacherLoss(student, teacher, DistillationLossConfig())
    teacher.config.id2label = {0: "a", 1: "b", 2: "c"}
    with pytest.raises(ModelError, match="labels are negative, positive and the teacher's a, b, c"):
        TeacherLoss(student, teacher, DistillationLossConfig())


def test_a_student_that_shares_weights_with_its_teacher_is_refused() -> None:
    student, teacher = bert(0), bert(1)
    student.classifier = teacher.classifier
    for pair in ((student, teacher), (teacher, teacher)):
        with pytest.raises(ModelError, match="student and teacher share weights"):
            TeacherLoss(*pair, DistillationLossConfig())


class Stack(nn.Module):
    """Repeated layers that are no transformer's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))


SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32}  # fmt: skip
TEXT: dict[str, Any] = {**SMALL, "vocab_size": 50, "max_position_embeddings": 20}
IMAGE: dict[str, Any] = {**SMALL, "image_size": 8, "patch_size": 4}
FAMILIES: dict[str, Any] = {
    "roberta": RobertaConfig(**TEXT), "electra": ElectraConfig(**TEXT, embedding_size=16),
    "distilbert": DistilBertConfig(vocab_size=50, dim=16, hidden_dim=32, n_layers=2, n_heads=2),
    "modernbert": ModernBertConfig(
        **TEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    ),
    "gpt2": GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "vit": ViTConfig(**IMAGE), "beit": BeitConfig(**IMAGE),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_hidden_states_attention_maps_and_values(family: str) -> None:
    models: list[Any] = []
    image = family in ("vit", "beit")
    auto: Any = AutoModelForImageClassification if image else AutoModelForSequenceClassification
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(auto.from_config(copy.deepcopy(FAMILIES[family])).eval())
    inputs = batch()
    if image:
        inputs = {"pixel_values": torch.randn(4, 3, 8, 8), "labels": inputs["labels"]}
    config = DistillationLossConfig(hidden_weight=1.0, attention_weight=1.0, value_weight=1.0)
    with TeacherLoss(models[0], models[1], config) as terms:
        found = terms(models[0], inputs, models[0](**inputs))
    assert all(found[name] > 0 for name in ("hidden_loss", "attention_loss", "value_loss"))
    with TeacherLoss(models[0], copy.deepcopy(models[0]), config) as terms:
        same = terms(models[0], inputs, models[0](**inputs))
    assert all(abs(term.item()) < 1e-5 for term in same.values())


def test_families_without_attention_maps_say_so() -> None:
    models: list[Any] = [MPNetForSequenceClassification(MPNetConfig(**TEXT)) for _ in range(2)]
    inputs = batch()
    with (
        TeacherLoss(models[0], models[1], DistillationLossConfig(attention_weight=1.0)) as terms,
        pytest.raises(ModelError, match="MPNetForSequenceClassification returns no attention maps"),
    ):
        terms(models[0], inputs, models[0](**inputs))


def test_a_config_without_any_term_is_refused() -> None:
    with pytest.raises(ConfigError, match="no term has a weight"):
        DistillationLossConfig(soft_weight=0.0)
