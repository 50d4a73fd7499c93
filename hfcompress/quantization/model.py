"""``QuantizedModel``: what `quantize` gives, whichever the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
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
        """Write a folder that `load` reads; see `hfcompress.quantization.folder.save_folder`."""
        from hfcompress.quantization.folder import save_folder

        return save_folder(self, directory, processor, card)

    def __deepcopy__(self, memo: object) -> QuantizedModel:
        return self  # an engine cannot be copied, and nothing changes it

    def plain(self) -> dict[str, Any]:
        """What was done, as data that JSON can hold."""
        return {
            "backend": self.config.backend,
            "mode": self.config.resolved_mode,
            "bytes": self.bytes,
            **self.coverage.plain(),
            "notes": list(self.notes),
            **({"mixed": self.mixed.plain()} if self.mixed else {}),
        }


def dense_logits(model: PreTrainedModel, batch: Mapping[str, Any]) -> Logits:
    """A torch model's logits for arrays or tensors, float32."""
    with torch.inference_mode():
        inputs = {key: torch.as_tensor(value) for key, value in batch.items()}
        found: Logits = np.asarray(model(**inputs).logits.float().cpu().numpy(), np.float32)
    return found
