"""``QuantizationAwareCallback``: quantization-aware training with any transformers ``Trainer``."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfcompress.errors import ConfigError
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.qat import FakeQuantization


class QuantizationAwareCallback(TrainerCallback):
    """Trains a model as it will compute once it is quantized::

        config = QuantizationConfig(backend="onnxruntime")
        Trainer(..., callbacks=[QuantizationAwareCallback(config)]).train()
        small = quantize(model, config)

    Weights and activations are rounded to the backend's grids on the way forward, and gradients
    pass as if they were not (1712.05877). When training ends the weights lie on their grid and the
    model computes in fp32 again. Goes with `PruningCallback`: dropped weights stay zero.

    Args:
        config: backend, mode and what else the model will be quantized with.

    Attributes:
        fake: the `FakeQuantization`, while training runs.
    """

    def __init__(self, config: QuantizationConfig) -> None:
        self.config = config
        self.fake: FakeQuantization | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Round from now on.

        Raises:
            ConfigError: mode none, or training that shards weights.
            TargetError: there is nothing to quantize.
        """
        assert model is not None
        if args.deepspeed or args.fsdp:
            raise ConfigError(
                "quantization-aware training needs whole weights in each process; leave deepspeed "
                "and fsdp out, and use plain data parallel training"
            )
        if self.fake is not None:  # an earlier training failed
            self.fake.stop()
        self.fake = FakeQuantization(model, self.config)
        self.fake.start()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the weights on their grid, and stop rounding."""
        if self.fake is not None:
            self.fake.settle()
            self.fake.stop()
            self.fake = None
