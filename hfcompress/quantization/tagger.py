"""``Tagger``: texts in, tags of their words out: transformers' pipeline around an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    TokenClassificationPipeline,
)
from transformers.modeling_outputs import TokenClassifierOutput

from hfcompress.errors import ConfigError, DataError, first_line
from hfcompress.quantization.predictor import Predictor

if TYPE_CHECKING:
    from hfcompress.quantization.engine import Engine
    from hfcompress.quantization.manifest import Manifest


class EngineModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """An engine as transformers calls a model."""

    def __init__(self, config: PreTrainedConfig, predictor: Predictor) -> None:
        super().__init__(config)
        self._predictor = predictor

    @property
    def device(self) -> torch.device:
        """Return the CPU, which engines run on."""
        return torch.device("cpu")

    def forward(self, **inputs: Tensor) -> TokenClassifierOutput:
        """Return the engine's logits."""
        arrays = {name: value.numpy() for name, value in inputs.items()}
        return TokenClassifierOutput(logits=torch.from_numpy(self._predictor.logits(arrays)))


class _Pipeline(TokenClassificationPipeline):
    def check_model_type(self, supported_models: object) -> None:
        """Take an engine, which is in no list of models."""


class Tagger(Predictor):
    """Texts in, tags of their words out, as ``pipeline("token-classification")`` gives them.

    Args:
        folder: with tokenizer and config.
        engine, labels, manifest: as in `Predictor`.
        shape: as in `load`.
    """

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        labels: list[str],
        manifest: Manifest,
        shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(engine, labels, None, manifest, shape, "tokens")
        if "text" not in manifest:
            self._tokenizer: Any = None
            return
        here = {"local_files_only": True, "trust_remote_code": False}
        self._tokenizer = AutoTokenizer.from_pretrained(folder, **here)  # nosec B615 # a folder
        self._config = AutoConfig.from_pretrained(folder, **here)  # nosec B615 # a folder

    def __call__(  # type: ignore[override]  # tags have places in the text, labels have none
        self, examples: object, batch_size: int = 32, **options: Any
    ) -> list[Any]:
        """Tag.

        Args:
            examples: a text, or a list of texts.
            batch_size: texts computed together.
            options: of ``TokenClassificationPipeline``: ``aggregation_strategy`` ("none",
                "simple", "first", "average", "max"), ``ignore_labels``, ``stride`` for texts that
                are longer than the model.

        Returns:
            For each text a list of ``{"entity": ..., "score": ..., "index": ..., "word": ...,
            "start": ..., "end": ...}``; that of the one text alone, where one is given.

        Raises:
            ConfigError: an option that the pipeline refuses, or ``batch_size`` below 1.
            DataError: something that is not a text, or a folder without tokenizer.
        """
        if self._tokenizer is None:
            raise DataError("the folder has no tokenizer; save the model with one")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size!r}; give a number from 1")
        single = isinstance(examples, str)
        texts = [examples] if single else list(examples)  # type: ignore[call-overload]
        for place, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"example {place} is {text!r}; give a text")
        if not texts:
            raise DataError("nothing to tag; give at least one text")
        try:
            tag: Any = _Pipeline(  # type: ignore[no-untyped-call]
                model=EngineModel(self._config, self), tokenizer=self._tokenizer
            )
            found: list[Any] = tag(texts, batch_size=batch_size, **options)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the pipeline refuses the options: {first_line(error)}") from None
        return found[0] if single else found
