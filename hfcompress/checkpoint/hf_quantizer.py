"""The config class and the quantizer class that transformers looks up for our checkpoints.

This file is imported while transformers is being imported (see hook.py), so everything that needs
models is imported where it is used.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hfcompress.checkpoint.record import METHOD, Record
from hfcompress.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CompressedConfig(QuantizationConfigMixin):
    """``config.json``'s ``quantization_config`` of a compressed checkpoint.

    Args:
        data: its fields.

    Raises:
        ModelError: fields that hfcompress does not write.
    """

    def __init__(self, **data: object) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # transformers types it as its enum
        self.record = Record.from_dict(data)

    def to_dict(self) -> dict[str, object]:
        """The record as stored in ``config.json``."""
        return copy.deepcopy(self.record.to_dict())


class CompressedLoader(HfQuantizer):
    """Shapes before loading, dense weights after it."""

    quantization_config: CompressedConfig

    def validate_environment(self, *args: object, **kwargs: object) -> None:
        """Refuse the config as an argument: it describes a checkpoint.

        Raises:
            ModelError: the checkpoint itself has none.
        """
        if not self.pre_quantized:
            raise ModelError(
                "quantization_config describes a checkpoint that hfcompress saved and changes no "
                "model; leave the argument out"
            )

    def _process_model_before_weight_loading(
        self,
        model: PreTrainedModel,
        checkpoint_files: Sequence[str] | None = None,
        **kwargs: object,
    ) -> PreTrainedModel:
        from hfcompress.checkpoint.load import apply_record

        record = self.quantization_config.record
        self._names = apply_record(model, record, checkpoint_files)
        return model

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: object
    ) -> PreTrainedModel:
        from hfcompress.checkpoint.load import finish

        finish(model, self.quantization_config.record, self._names)
        return model

    def is_serializable(self) -> bool:
        """True: the record is part of the config."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: the weights are dense."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """True: all weights may be trained, not only adapters."""
        return True


def register() -> None:
    """Put both classes in transformers' tables, once."""
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(METHOD, CompressedConfig)
    auto.AUTO_QUANTIZER_MAPPING.setdefault(METHOD, CompressedLoader)


register()
