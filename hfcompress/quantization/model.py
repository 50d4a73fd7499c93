"""``QuantizedModel``: what `quantize` gives, whichever the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hfcompress.data.encode import Encoded
from hfcompress.inference import Batches, Logits, predict_with
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.coverage import Coverage
from hfcompress.quantization.engine import Engine

if TYPE_CHECKING:
    from hfcompress.quantization.mixed_precision import MixedReport
import json
import os
import shutil
import uuid

import yaml

from hfcompress.errors import ModelError, OutputError
from hfcompress.quantization.example_script import example_script
from hfcompress.quantization.onnx_export import IMAGE_INPUT
from hfcompress.quantization.pixels import image_settings
from hfcompress.utils import unwritable


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized classifier in its engine, called as the fp32 model is.

    Attributes:
        engine: computes its logits.
        config: how it was quantized.
        coverage: what became of each module.
        source: the fp32 model that it was made from.
        notes: what the user should know, one sentence each.
        mixed: what mixed precision keeps in fp32, where it was asked for.
    """

    engine: Engine
    config: QuantizationConfig
    coverage: Coverage
    source: PreTrainedModel
    notes: tuple[str, ...] = ()
    mixed: MixedReport | None = None

    def __call__(self, **inputs: Tensor) -> SequenceClassifierOutput:
        """As a transformers classifier; ``labels`` are left aside.

        Args:
            inputs: ``input_ids``, ``attention_mask`` and the like, [batch, length].
        """
        return SequenceClassifierOutput(logits=torch.from_numpy(self.logits(inputs)))

    def logits(self, batch: Mapping[str, Tensor]) -> Logits:
        """Logits of one batch, float32 [batch, classes]."""
        return self.engine.logits(
            {key: value.cpu().numpy() for key, value in batch.items() if key != "labels"}
        )

    def predict(
        self,
        data: Encoded,
        batch_size: int,
        progress: Callable[[int, int], None] | None = None,
        batches: Batches | None = None,
    ) -> Logits:
        """Logits of every row, in the data's order; as `hfcompress.inference.predict`."""
        return predict_with(self.logits, data, batch_size, progress, batches)

    @property
    def bytes(self) -> int:
        """Bytes of the model's own files; the tokenizer's are not among them."""
        return self.engine.bytes

    def save(self, directory: str | Path, processor: Any = None, card: str | None = None) -> Path:
        """Write a folder that `load` reads; see `hfcompress.quantization.model.save_folder`."""

        return save_folder(self, directory, processor, card)

    def __deepcopy__(self, memo: object) -> QuantizedModel:
        return self  # an engine cannot be copied, and nothing changes it

    def to_dict(self) -> dict[str, Any]:
        """What was done, as data that JSON can hold."""
        return {
            "backend": self.config.backend,
            "mode": self.config.resolved_mode,
            "bytes": self.bytes,
            **self.coverage.to_dict(),
            "notes": list(self.notes),
            **({"mixed": self.mixed.to_dict()} if self.mixed else {}),
        }


MANIFEST = "hfcompress.json"
FORMAT = 1
# Where neither the tokenizer nor the model says how long a text may be.
_LONGEST = 512


def save_folder(
    quantized: QuantizedModel, directory: str | Path, processor: Any = None, card: str | None = None
) -> Path:
    """Write a quantized model with everything that a program needs to use it.

    Args:
        quantized: from `quantize`.
        directory: where to; a folder that this function wrote before is replaced.
        processor: the model's tokenizer (a fast one) or image processor; without it the folder
            gives logits and cannot read texts or images.
        card: text of its README.md; by default one that says what was quantized.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
        ModelError: a tokenizer that has no ``tokenizer.json``.
    """
    directory = Path(directory)
    _check_target(directory)
    temporary = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        manifest = _manifest(quantized, processor)
        quantized.engine.write(temporary)
        _write_config(quantized.source, temporary / "config.json")
        if processor is not None:
            processor.save_pretrained(temporary)
        texts = {
            MANIFEST: json.dumps(manifest, indent=2) + "\n",
            "README.md": card or default_card(quantized),
        }
        if "text" in manifest or "image" in manifest:
            texts["example.py"] = example_script(quantized.config.backend, "image" in manifest)
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        _swap(temporary, directory)
    except OSError as error:
        raise unwritable(directory, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def read_manifest(directory: Path) -> dict[str, Any]:
    """What a folder says of itself.

    Raises:
        ModelError: no folder of ours, or one of a later version.
    """
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        known = manifest["format"], manifest["backend"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"{str(directory)!r} is no folder of a quantized model: it holds no {MANIFEST}; "
            f"give a folder that hfcompress's quantize(...).save wrote"
        ) from None
    if known[0] != FORMAT:
        raise ModelError(f"{directory / MANIFEST} has the format {known[0]}; upgrade hfcompress")
    return dict(manifest)


def read_labels(directory: Path) -> list[str]:
    """The label names in order.

    Raises:
        ModelError: ``config.json`` has none.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        names = {int(number): str(name) for number, name in config["id2label"].items()}
        return [names[number] for number in range(len(names))]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise ModelError(
            f"{directory / 'config.json'} names no labels; write id2label into it: "
            f'{{"0": "negative", "1": "positive"}}'
        ) from None


def default_card(quantized: QuantizedModel) -> str:
    """A README.md that says what was quantized, what not and why."""
    config, coverage = quantized.config, quantized.coverage
    what = "photo.jpg" if IMAGE_INPUT in quantized.engine.inputs else "a sentence"
    head = yaml.safe_dump({"tags": ["hfcompress", config.backend], "license": "other"})
    lines = [
        f"---\n{head}---\n",
        f"# {type(quantized.source).__name__}, quantized\n",
        f"Engine {config.backend}, mode {config.resolved_mode}; {quantized.bytes:,} bytes.",
        f"{coverage.share_of_bytes:.1%} of the fp32 model's bytes are integers now, and "
        f"{coverage.share_of_macs:.1%} of its multiply-accumulates have integer weights.",
        "What stays in floating point:\n",
        *(f"- {count} modules: {reason}" for reason, count in coverage.reasons.items()),
        f'\nUse it: `python example.py "{what}"`, or\n',
        f'```python\nimport hfcompress\n\nprint(hfcompress.load("FOLDER")("{what}"))\n```',
    ]
    return "\n".join(lines) + "\n"


def _write_config(model: PreTrainedModel, path: Path) -> None:
    """The engine's ``config.json``, or the model's; transformers leaves default labels out."""
    config: Any = model.config
    text = path.read_text(encoding="utf-8") if path.exists() else config.to_json_string()
    labels = {str(number): str(name) for number, name in config.id2label.items()}
    numbers = {name: int(number) for number, name in labels.items()}
    data = {**json.loads(text), "id2label": labels, "label2id": numbers}
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _manifest(quantized: QuantizedModel, processor: Any) -> dict[str, Any]:
    did = quantized.to_dict()
    did.pop("modules")
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "backend": quantized.config.backend,
        "inputs": list(quantized.engine.inputs),
        "model": type(quantized.source).__name__,
        "quantization": quantized.config.to_dict(),
        "done": did,
    }
    if processor is not None and IMAGE_INPUT not in quantized.engine.inputs:
        manifest["text"] = _text_settings(processor, quantized.source)
    elif processor is not None and (settings := image_settings(processor)) is not None:
        manifest["image"] = settings
    return manifest


def _text_settings(tokenizer: Any, model: PreTrainedModel) -> dict[str, Any]:
    """What `tokenizers` must be told besides tokenizer.json."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} has no tokenizer.json; load it with AutoTokenizer, "
            f"which gives a fast one where there is one"
        )
    config: Any = model.config
    own = int(tokenizer.model_max_length)
    limit = getattr(config, "max_position_embeddings", None) or _LONGEST
    return {
        "max_length": own if own < 10**6 else int(limit),
        "pad_id": int(tokenizer.pad_token_id or 0),
        "pad_token": str(tokenizer.pad_token or "[PAD]"),
        "padding_side": str(tokenizer.padding_side),
    }


def _check_target(directory: Path) -> None:
    ours = (directory / MANIFEST).is_file()
    if directory.exists() and not ours and (directory.is_file() or any(directory.iterdir())):
        raise OutputError(
            f"{str(directory)!r} holds something else; give a new folder, or one that a "
            f"quantized model was saved to"
        )


def _swap(temporary: Path, directory: Path) -> None:
    """Put the new folder where the old one is; a crash between leaves the old one beside it."""
    old = temporary.with_suffix(".old")
    if directory.exists():
        os.replace(directory, old)
    os.replace(temporary, directory)
    shutil.rmtree(old, ignore_errors=True)
