"""``QuantizedModel``: what `quantize` returns, whichever the engine, and the folder it saves."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SemanticSegmenterOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from hfcompress.checkpoint.digests import write_digests
from hfcompress.data.encode import Encoded, text_limit
from hfcompress.errors import ModelError, OutputError, first_line
from hfcompress.inference import Batches, Logits, predict_with
from hfcompress.models.modeling_embedding import EmbeddingModel, save_layout
from hfcompress.models.outputs import BY_PLACE
from hfcompress.models.upload import push
from hfcompress.quantization.card import quantized_card
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.coverage import Coverage
from hfcompress.quantization.engine import SPAN_OUTPUTS, Engine, FileEngine
from hfcompress.quantization.example_script import embedding_script, example_script
from hfcompress.quantization.image_script import image_script
from hfcompress.quantization.inputs import as_batches
from hfcompress.quantization.manifest import (
    FORMAT,
    GRAPHS,
    MANIFEST,
    Graph,
    Manifest,
    QuantizationFields,
    QuantizationReport,
    TextSettings,
    file_digests,
)
from hfcompress.quantization.onnx_export import IMAGE_INPUT, TEXT_INPUTS
from hfcompress.quantization.pixels import image_settings
from hfcompress.quantization.question_script import question_script
from hfcompress.storage.temporary import replace_folder, written_beside
from hfcompress.tasks.outputs import OutputKind, output_kind
from hfcompress.training.outputs import infer_task
from hfcompress.utils import FormerPlain, unwritable

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

    from hfcompress.quantization.distance import Distance
    from hfcompress.quantization.mixed_precision import MixedReport

    Processor = PreTrainedTokenizerBase | BaseImageProcessor

# Tokens of a text where neither the tokenizer nor the model has a limit.
_DEFAULT_MAX_LENGTH = 512
_NO_LIMIT = 10**6
"""From here on ``model_max_length`` means that a tokenizer has no limit."""
Side = Literal["left", "right"]
_OUTPUTS: dict[OutputKind, Any] = {
    **dict.fromkeys(("tokens", "masked"), TokenClassifierOutput), "pixels": SemanticSegmenterOutput,
}  # fmt: skip


@dataclass(frozen=True)
class QuantizedModel(FormerPlain):
    """A quantized model in its engine, called as the fp32 model is.

    Attributes:
        engine: computes its logits.
        config: how it was quantized.
        coverage: which modules are quantized, and why others are not.
        source: the fp32 model that was quantized.
        notes: warnings for the user, one sentence each.
        mixed: what mixed precision keeps in fp32; None without mixed precision.
        distance: how far its logits are from the fp32 model's.
        outputs: number of logits of a row, a token or a pixel.
    """

    engine: Engine
    config: QuantizationConfig
    coverage: Coverage
    source: nn.Module
    notes: tuple[str, ...] = ()
    mixed: MixedReport | None = None
    distance: Distance | None = None
    outputs: int = 0

    def __repr__(self) -> str:
        return (
            f"QuantizedModel({type(self.source).__name__} in {self.config.backend}, "
            f"{self.config.resolved_mode}: {self.bytes:,} bytes, "
            f"{self.coverage.share_of_bytes:.1%} of the fp32 bytes as integers)"
        )

    def __call__(self, *tensors: Tensor, **inputs: Tensor) -> SequenceClassifierOutput:
        """Return the output of a transformers model of its task; ``labels`` are ignored.

        Args:
            tensors: inputs by place, in the order of ``engine.inputs``.
            inputs: ``input_ids``, ``attention_mask`` and the like, [batch, length].
        """
        placed = dict(zip(self.engine.inputs, tensors, strict=False))
        logits = torch.from_numpy(self.logits({**placed, **inputs}))
        if self.kind == "spans":
            found: Any = QuestionAnsweringModelOutput()
            for name, part in zip(SPAN_OUTPUTS, logits.unbind(1), strict=True):
                found[name] = part
            return cast(SequenceClassifierOutput, found)
        made = _OUTPUTS.get(self.kind, SequenceClassifierOutput)(logits=logits)
        return cast(SequenceClassifierOutput, made)

    @property
    def kind(self) -> OutputKind:
        """What the logits mean."""
        task = infer_task(self.source)
        if task in (*BY_PLACE, "ranking"):
            return task
        config = getattr(self.source, "config", None)
        return output_kind(getattr(config, "problem_type", None), self.outputs)

    def logits(self, batch: Mapping[str, Tensor]) -> Logits:
        """Return the logits of one batch, float32 [batch, classes], or as the task has them."""
        (given,) = as_batches(batch, self.source)
        return self.engine.logits(given)

    def predict(
        self,
        data: Encoded,
        batch_size: int,
        progress: Callable[[int, int], None] | None = None,
        batches: Batches | None = None,
    ) -> Logits:
        """Return the outputs of every row, in the data's order; see `inference.predict`."""
        return predict_with(self.logits, data, batch_size, progress, batches)

    @property
    def bytes(self) -> int:
        """Return the bytes of the model's own files, without the tokenizer's."""
        return self.engine.bytes

    def save(
        self, directory: str | Path, processor: Processor | None = None, card: str | None = None
    ) -> Path:
        """Write a folder that `load` reads; see `hfcompress.quantization.model.save_folder`."""
        return save_folder(self, directory, processor, card)

    def push_to_hub(
        self,
        name: str,
        processor: Processor | None = None,
        card: str | None = None,
        private: bool | None = None,
    ) -> str:
        """Save into a temporary folder, upload it and return its address; see `push`."""
        with tempfile.TemporaryDirectory() as folder:
            return push(self.save(Path(folder) / "model", processor, card), name, private)

    def __deepcopy__(self, memo: object) -> QuantizedModel:
        return self  # an engine cannot be copied, and nothing changes it

    def to_dict(self) -> QuantizationReport:
        """Return the report of what was done as JSON data."""
        report = {
            "backend": self.config.backend,
            "mode": self.config.resolved_mode,
            "bytes": self.bytes,
            **self.coverage.to_dict(),
            "notes": list(self.notes),
            **({"mixed": self.mixed.to_dict()} if self.mixed else {}),
            **({"distance": self.distance.to_dict()} if self.distance else {}),
        }
        return cast(QuantizationReport, report)


def save_folder(
    quantized: QuantizedModel,
    directory: str | Path,
    processor: Processor | None = None,
    card: str | None = None,
) -> Path:
    """Write a quantized model with everything that a program needs to use it.

    Args:
        quantized: from `quantize`.
        directory: where to; a folder that this function wrote before is replaced.
        processor: the model's tokenizer (a fast one) or image processor; without it the folder
            gives logits and cannot read texts or images.
        card: text of its README.md; by default one that says what was quantized.

    Raises:
        OutputError: the folder contains something else, or cannot be written.
        ModelError: a tokenizer that has no ``tokenizer.json``.
    """
    directory = Path(directory)
    _check_target(directory)
    try:
        with written_beside(directory) as temporary:
            _write(quantized, temporary, processor, card)
            replace_folder(temporary, directory)
    except OSError as error:
        raise unwritable(directory, error) from None
    return directory


def _write(
    quantized: QuantizedModel, folder: Path, processor: Processor | None, card: str | None
) -> None:
    manifest = _manifest(quantized, processor)
    quantized.engine.write(folder)
    if "graph" in manifest:
        _move_graph(quantized.engine, folder, manifest["graph"])
    if isinstance(quantized.source, EmbeddingModel):
        save_layout(quantized.source, folder)
    _write_config(quantized, folder / "config.json")
    write_digests(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    manifest["digests"] = file_digests(folder, manifest)
    texts = {
        MANIFEST: json.dumps(manifest, indent=2) + "\n",
        "README.md": card or _default_card(quantized),
    }
    if "text" in manifest or "image" in manifest:
        texts["example.py"] = _example(quantized, manifest)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _example(quantized: QuantizedModel, manifest: Manifest) -> str:
    backend = quantized.config.backend
    if isinstance(quantized.source, EmbeddingModel):
        return embedding_script(backend, manifest.get("graph", ""))
    if quantized.kind == "spans":
        return question_script(backend)
    return (image_script if "image" in manifest else example_script)(backend, quantized.kind)


def _move_graph(engine: Engine, folder: Path, graph: Graph) -> None:
    """Move an engine's files to where sentence-transformers looks for them.

    Args:
        engine: wrote its files into the folder.
        folder: of the model.
        graph: path of the main file.
    """
    target = folder / graph
    target.parent.mkdir()
    for file in cast(FileEngine, engine).files:
        name = file.name.replace(cast(FileEngine, engine).files[0].stem, target.stem, 1)
        os.replace(folder / file.name, target.with_name(name))


def _default_card(quantized: QuantizedModel) -> str:
    return quantized_card(
        quantized.source, quantized.kind, IMAGE_INPUT in quantized.engine.inputs,
        quantized.config, quantized.coverage, quantized.bytes,
    )  # fmt: skip


def _write_config(quantized: QuantizedModel, path: Path) -> None:
    """Write ``config.json`` with its labels, which transformers leaves out where they are default.

    An engine that has written the file before keeps its fields.
    """
    config = quantized.source.config if isinstance(quantized.source, PreTrainedModel) else None
    if isinstance(quantized.source, EmbeddingModel):
        if not path.exists():
            quantized.source.config.save_pretrained(path.parent)
        return
    named_class = {"architectures": [type(quantized.source).__name__]}
    text = config.to_json_string() if config else json.dumps(named_class)
    if path.exists():
        text = path.read_text(encoding="utf-8")
    named = (config.id2label if config else None) or {
        number: f"LABEL_{number}" for number in range(quantized.outputs)
    }
    labels = {str(number): str(name) for number, name in named.items()}
    numbers = {name: int(number) for number, name in labels.items()}
    data = {**json.loads(text), "id2label": labels, "label2id": numbers}
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _manifest(quantized: QuantizedModel, processor: Processor | None) -> Manifest:
    done = quantized.to_dict()
    done.pop("modules")
    done["total_macs"] = quantized.coverage.total_macs
    manifest: Manifest = {
        "format": FORMAT,
        "backend": quantized.config.backend,
        "inputs": list(quantized.engine.inputs),
        "model": type(quantized.source).__name__,
        "quantization": cast(QuantizationFields, quantized.config.to_dict()),
        "done": done,
    }
    if isinstance(quantized.source, EmbeddingModel):
        if quantized.config.backend in GRAPHS:
            manifest["graph"] = GRAPHS[quantized.config.backend]
    else:
        manifest["output"] = quantized.kind
    if processor is None:
        return manifest
    if IMAGE_INPUT not in quantized.engine.inputs:
        tokenizer = cast(PreTrainedTokenizerBase, processor)
        manifest["text"] = text_settings(tokenizer, quantized.source)
        length: int | None = getattr(quantized.engine, "length", None)  # of one static shape
        if length is not None:
            manifest["text"]["max_length"] = min(length, manifest["text"]["max_length"])
    elif (settings := image_settings(cast("BaseImageProcessor", processor))) is not None:
        manifest["image"] = settings
    return manifest


def text_settings(tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> TextSettings:
    """Return what `tokenizers` needs beside ``tokenizer.json`` to encode as a tokenizer does.

    Args:
        tokenizer: a fast one.
        model: its positions, and the limit of an embedding model, bound the length.

    Raises:
        ModelError: a tokenizer that has no ``tokenizer.json``.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} has no tokenizer.json; load it with AutoTokenizer, "
            f"which gives a fast one where one exists"
        )
    padding = tokenizer.pad_token_id
    if padding is None:  # decoders find the last token of a text by their config's
        padding = getattr(getattr(model, "config", None), "pad_token_id", None)
    settings: TextSettings = {
        "max_length": _longest_text(tokenizer, model),
        "pad_id": int(padding or 0),
        "pad_token": str(tokenizer.pad_token or "[PAD]"),
        "padding_side": cast(Side, str(tokenizer.padding_side)),
        "truncation_side": cast(Side, str(tokenizer.truncation_side)),
        "pad_type_id": int(tokenizer.pad_token_type_id),
        "split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
        "inputs": [
            name for name in TEXT_INPUTS if name in ("input_ids", *tokenizer.model_input_names)
        ],
    }
    if infer_task(model) == "masked":
        settings["mask_token"] = str(tokenizer.mask_token)
    return settings


def read_text_settings(directory: Path, model: nn.Module) -> TextSettings:
    """Return the settings of the tokenizer in a folder of torch weights.

    Args:
        directory: the folder.
        model: as in `text_settings`.

    Raises:
        ModelError: no tokenizer, or one that has no ``tokenizer.json``.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(  # nosec B615 # a local folder
            directory, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{str(directory)!r} has no tokenizer that can be read ({first_line(error)}); save the "
            f"model with one"
        ) from None
    return text_settings(tokenizer, model)


def _longest_text(tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> int:
    """Return the tokens of the longest text: the tokenizer's limit, or the model's positions."""
    limit = text_limit(int(tokenizer.model_max_length), model)
    if isinstance(model, EmbeddingModel) and model.layout.max_length is not None:
        limit = min(limit or _NO_LIMIT, model.layout.max_length)
    if limit is not None and limit < _NO_LIMIT:
        return limit
    usual = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return int(usual or _DEFAULT_MAX_LENGTH)


def _check_target(directory: Path) -> None:
    ours = (directory / MANIFEST).is_file()
    if directory.exists() and not ours and (directory.is_file() or any(directory.iterdir())):
        raise OutputError(
            f"{str(directory)!r} contains something else; give a new folder, or one that a "
            f"quantized model was saved to"
        )
