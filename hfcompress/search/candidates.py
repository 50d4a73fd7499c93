"""What `compress` tries: ways to a smaller model, each with the size that arithmetic predicts.

The order is that of expected loss: nothing but quantization, then rare tokens go, then ever more
heads and neurons, then a convolutional student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from hfcompress.data.columns import column_texts
from hfcompress.errors import ModelError, TargetError
from hfcompress.measure.environment import bf16_is_faster
from hfcompress.models.architectures import blocks, compressible_modules
from hfcompress.models.outputs import BY_TOKEN
from hfcompress.models.sublayers import known_family, sublayers
from hfcompress.search.target import CompressTarget
from hfcompress.shrinking.vocabulary.shrink import required_tokens
from hfcompress.shrinking.vocabulary.tokenizer import count_kept
from hfcompress.sweep.experiment import Experiment
from hfcompress.utils import Fields

Steps = tuple[Fields, ...]
# What is tried, and about how many points each costs after distillation (MiniLM on SST-2). The
# points decide the order alone: what is measured counts.
SHARES = {0.75: 0.2, 0.5: 0.6, 0.35: 1.2, 0.25: 2.0, 0.15: 3.0}
MIN_COUNTS = {1: 0.4, 2: 0.6, 5: 1.2, 20: 3.0}
# Tokens that the training rows have at most so often are missed by less than half a point.
_RARE = 2
_CNN_LOSS = 7.0
# Texts that shrink looks at.
_ROWS = 640
# Engines whose int8 leaves embedding tables in fp32.
_FLOAT_TABLES = ("torch", "torchao")
# Bytes of an exported graph besides weights (nodes, names, scales): at least, and for each layer.
_GRAPH, _GRAPH_LAYER = 30_000, 20_000
_CNN_WIDTH, _CNN_KERNELS, _CNN_EMBEDDING = 128, (1, 2, 3, 4), 96


@dataclass(frozen=True)
class Candidate:
    """One way.

    Attributes:
        name: as messages and rows show it.
        steps: without training where there is a choice; quantizing is last.
        trained: the same with distillation before quantizing; None where nothing could be learnt
            back.
        finer: fields of the quantize step that lose less and take longer; none where there are
            none.
        share: of the encoder's multiply-accumulates that is left.
        bytes: predicted size.
        loss: points that it should cost, roughly.
    """

    name: str
    steps: Steps
    trained: Steps | None
    share: float
    bytes: int
    loss: float
    finer: Mapping[str, object] = field(default_factory=dict)

    @property
    def plans(self) -> list[tuple[str, Steps, bool]]:
        """Name, steps and whether they are the finer ones, in the order in which to try them."""
        found = []
        trained = f"{self.name}, distilled"
        for name, steps in ((self.name, self.steps), (trained, self.trained)):
            if steps is not None:
                found.append((name, steps, False))
                if self.finer:
                    last = {"quantize": {**steps[-1]["quantize"], **self.finer}}
                    found.append((f"{name}, finer int8", (*steps[:-1], last), True))
        return found


def candidates(experiment: Experiment, target: CompressTarget) -> list[Candidate]:
    """All ways that fit the model, those first that should lose least."""
    model = experiment.loaded.model
    kept = _vocabularies(experiment)
    quantize = {"quantize": target.quantization}
    finer = target.finer if experiment.examples.modality == "text" else {}
    found = []
    for least, tokens in kept.items():
        cut, lost = _cut(least)
        suffix = "" if least is None else f", {tokens:,} tokens"
        size = _predicted(model, tokens, 1.0, target)
        found.append(Candidate(f"int8{suffix}", (*cut, quantize), None, 1.0, size, lost, finer))
        for share, points in SHARES.items() if _shrinks(model) else ():
            shrink = {"shrink": {"macs": share, **_shrink_fields(experiment)}}
            distill = {"distill": _distilled(experiment, hidden=True)}
            found.append(
                Candidate(
                    f"{share:.0%} of the encoder{suffix}",
                    (shrink, *cut, quantize),
                    (shrink, *_in_order(least, cut, distill), quantize),
                    share,
                    _predicted(model, tokens, share, target),
                    lost + points,
                    finer,
                )
            )
    found += _students(experiment, kept, target)
    return sorted(found, key=lambda candidate: (candidate.loss, -candidate.bytes))


def _cut(least: int | None) -> tuple[Steps, float]:
    """The step that leaves out rare tokens, and the points that it should cost."""
    if least is None:
        return (), 0.0
    return ({"vocabulary": {"min_count": least}},), MIN_COUNTS[least]


def _in_order(least: int | None, cut: Steps, distill: Fields) -> Steps:
    """Rare tokens go after training, so that all vocabularies without them share what takes
    minutes; without the others the student has to learn."""
    return (distill, *cut) if (least or 0) <= _RARE else (*cut, distill)


def _vocabularies(experiment: Experiment) -> dict[int | None, int]:
    """``min_count`` -> tokens that would be left; None: all of them."""
    model = experiment.loaded.model
    everything: dict[int | None, int] = {None: int(getattr(model.config, "vocab_size", 0) or 0)}
    texts = experiment.examples.train
    examples = experiment.examples
    # Pseudo-perplexities over other tokens cannot be compared.
    if examples.modality != "text" or examples.kind == "masked" or texts is None:
        return everything
    rows = column_texts(texts, experiment.examples.columns)
    try:
        counted = count_kept(
            experiment.loaded.processor, rows, list(MIN_COUNTS), required_tokens(model)
        )
    except ModelError:  # a tokenizer that cannot be cut; the rest still can
        return everything
    smaller: Mapping[int | None, int] = {
        least: tokens for least, tokens in counted.items() if tokens < 0.95 * everything[None]
    }
    return {**everything, **smaller}


def _shrinks(model: PreTrainedModel) -> bool:
    try:
        known_family(model)
        return any(sublayer.removable for sublayer in sublayers(model))
    except TargetError:
        return False


def _shrink_fields(experiment: Experiment) -> Fields:
    """The recipes' settings: widths that engines like, and rows, half of them of new text."""
    rows = 0 if experiment.train is None else len(experiment.train)
    if _augments(experiment):
        given = min(_ROWS, rows)
        return {"multiple_of": 16, "calibration_rows": given, "augmented_rows": given}
    return {"multiple_of": 16, "calibration_rows": min(2 * _ROWS, rows)}


def _augments(experiment: Experiment) -> bool:
    """Whether new texts can be made from the training texts."""
    return experiment.examples.modality == "text" and len(experiment.examples.columns) == 1


def _distilled(experiment: Experiment, hidden: bool) -> Fields:
    """What ties a student to the dense model; the recipes' settings."""
    fast = bf16_is_faster(experiment.loaded.model)
    options: Fields = {"alpha": 1, "temperature": 1 if hidden else 2}
    if hidden:
        options["hidden_weight"] = 3
    if fast:
        options["teacher_precision"] = "bf16"
    fields = {
        "epochs": 5 if hidden else 8,
        "batch_size": 32,
        "learning_rate": 5e-4 if hidden else 1e-3,
        "warmup": 0.05,
        "bf16": fast,
        "distillation": options,
    }
    if _augments(experiment):
        fields["augmentation"] = {"share": 0.5 if hidden else 0.7}
    return fields


def _students(
    experiment: Experiment, kept: Mapping[int | None, int], target: CompressTarget
) -> list[Candidate]:
    """A CNN for each vocabulary that is cut."""
    model = experiment.loaded.model
    table = model.get_input_embeddings() if model.main_input_name == "input_ids" else None
    examples = experiment.examples
    if (
        not isinstance(table, nn.Embedding)
        or len(examples.columns) != 1
        or examples.kind in BY_TOKEN
    ):
        return []
    width = min(_CNN_EMBEDDING, table.embedding_dim)
    sizes = {"width": _CNN_WIDTH, "kernels": list(_CNN_KERNELS), "embedding_size": width}
    training = {
        **_distilled(experiment, hidden=False),
        "text_student": {**sizes, "dropout": 0.3},
        "dropout": None,
        "freeze_embeddings": False,
    }
    quantization = target.quantization
    if target.backend == "onnxruntime" and target.mode == "auto":
        quantization["mode"] = "static"  # dynamic leaves convolutions in fp32
    outputs = _CNN_WIDTH * len(_CNN_KERNELS)
    convolutions = width * _CNN_WIDTH * sum(_CNN_KERNELS)
    found = []
    for least, tokens in kept.items():
        cut, lost = _cut(least)
        steps = (*cut, {"distill": training}, {"quantize": quantization})
        floats = 4 if target.backend in _FLOAT_TABLES or target.mode == "none" else 1
        size = (tokens * width + convolutions) * floats + 2 * outputs * 128 + _GRAPH
        name = f"a CNN, {tokens:,} tokens"
        found.append(Candidate(name, steps, None, 0.0, size, lost + _CNN_LOSS))
    return found


def _predicted(model: PreTrainedModel, tokens: int, share: float, target: CompressTarget) -> int:
    """Bytes after quantization: products in int8, tables too where the engine does so."""
    products = set(compressible_modules(model).values())
    inner = {id(unit) for unit in _encoder_products(model)}
    product = 4 if target.mode == "none" else 1
    table = 4 if target.backend in _FLOAT_TABLES else product
    total, words = 0.0, getattr(model.config, "vocab_size", None)
    for module in model.modules():
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if isinstance(module, nn.Embedding):
            rows = module.num_embeddings
            own = own * tokens // rows if rows == words and tokens else own
            total += own * table
        elif module in products:
            total += own * product * (share if id(module) in inner else 1.0)
        else:
            total += own * 4
    return round(total) + _GRAPH + _GRAPH_LAYER * len(blocks(model))


def _encoder_products(model: PreTrainedModel) -> Sequence[nn.Module]:
    try:
        found = sublayers(model)
    except TargetError:
        return ()
    names = {name for part in found for name in (part.name, *part.producers)}
    return [model.get_submodule(name) for name in names]
