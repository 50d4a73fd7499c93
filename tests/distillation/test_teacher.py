import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from hfcompress.distillation.config import DistillationConfig
from hfcompress.distillation.losses import hidden_state_loss, kl_divergence, logits_mse
from hfcompress.distillation.teacher import TeacherLoss
from hfcompress.errors import ConfigError, ModelError


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
    config = DistillationConfig(
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
    config = DistillationConfig(logits_weight=1.0, hidden_weight=1.0, hidden_distance="cosine")
    student, inputs = bert(0), batch()
    terms = TeacherLoss(student, bert(0), config)(student, inputs, student(**inputs))
    assert all(abs(term.item()) < 1e-5 for term in terms.values())


@pytest.mark.parametrize("distance", ["mse", "normalized_mse", "cosine"])
def test_gradients_reach_every_layer_of_the_student_only(distance: str) -> None:
    student, teacher, inputs = bert(0), bert(1), batch()
    fields = {"soft_weight": 0.0, "hidden_weight": 1.0, "hidden_distance": distance}
    terms = TeacherLoss(student, teacher, DistillationConfig.parse(fields))
    terms(student, inputs, student(**inputs))["hidden_loss"].backward()  # type: ignore[no-untyped-call]
    for number in range(2):
        gradient = student.get_parameter(f"bert.encoder.layer.{number}.output.dense.weight").grad
        assert gradient is not None
        assert gradient.any()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_distance_and_the_precision_change_the_loss() -> None:
    student, inputs = bert(0), batch()

    def total(**fields: object) -> float:
        config = DistillationConfig.parse({"hidden_weight": 1.0, **fields})
        with TeacherLoss(student, bert(1), config) as terms:
            values = terms(student, inputs, student(**inputs))
        return sum(term.item() for term in values.values())

    totals = [total(hidden_distance=name) for name in ("mse", "normalized_mse", "cosine")]
    totals += [total(teacher_precision="bf16"), total(temperature=1.0)]
    assert len(set(totals)) == 5


def test_the_hooks_are_gone_at_the_end() -> None:
    student, teacher = bert(0), bert(1)
    with TeacherLoss(student, teacher, DistillationConfig(hidden_weight=1.0)):
        assert any(module._forward_hooks for module in student.modules())
    for model in (student, teacher):
        assert not any(module._forward_hooks for module in model.modules())


def test_models_that_cannot_be_compared_layer_by_layer_are_refused() -> None:
    config = DistillationConfig(hidden_weight=1.0)
    with pytest.raises(ModelError, match="student has 1 layers and the teacher 2"):
        TeacherLoss(bert(0, layers=1), bert(1), config)
    with pytest.raises(ModelError, match="no repeated layers"):
        TeacherLoss(nn.Linear(2, 2), bert(1), config)


def test_other_families_have_hidden_states_too() -> None:
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=50, dim=16, hidden_dim=32, n_layers=2, n_heads=2)
    student = DistilBertForSequenceClassification(config)
    inputs = batch()
    terms = TeacherLoss(student, bert(1), DistillationConfig(hidden_weight=1.0))
    assert terms(student, inputs, student(**inputs))["hidden_loss"] > 0


def test_a_config_without_any_term_is_refused() -> None:
    with pytest.raises(ConfigError, match="no term has a weight"):
        DistillationConfig(soft_weight=0.0)
