"""``MaskFiller``: texts with masks in, tokens out: transformers' pipeline around an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoTokenizer, FillMaskPipeline

from hfcompress.errors import ConfigError, DataError, first_line
from hfcompress.quantization.predictor import Predictor
from hfcompress.quantization.tagger import EngineModel

if TYPE_CHECKING:
    from hfcompress.quantization.engine import Engine
    from hfcompress.quantization.manifest import Manifest


class _Pipeline(FillMaskPipeline):
    def check_model_type(self, supported_models: object) -> None:
        """Take an engine, which is in no list of models."""


class MaskFiller(Predictor):
    """Texts with masks in, tokens out, as ``pipeline("fill-mask")`` gives them.

    Args:
        folder: with tokenizer and config.
        engine, labels, manifest: as in `Predictor`.
        shape: as in `load`.

    Attributes:
        tokenizer: of the folder, whose ``mask_token`` stands where a token is asked for; None
            without one.
    """

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        labels: list[str],
        manifest: Manifest,
        shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(engine, labels, None, manifest, shape, "masked")
        self.tokenizer: Any = None
        if "text" not in manifest:
            return
        here = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **here)  # nosec B615 # a folder
        self._config = AutoConfig.from_pretrained(folder, **here)  # nosec B615 # a folder
        self._longest = manifest["text"]["max_length"]

    def __call__(  # type: ignore[override]  # a text has tokens for each mask, labels have none
        self, examples: object, top_k: int = 5, batch_size: int = 32, *, targets: object = None
    ) -> list[Any]:
        """Find the likeliest tokens::

            fill = hfcompress.load("backbone")
            fill("a [MASK] film")    # [{"score": 0.21, "token": 2204, "token_str": "good", ...}]

        Args:
            examples: a text, or a list of texts, each with the tokenizer's mask token once or more.
            top_k: tokens for each mask.
            batch_size: texts computed together.
            targets: words that are compared alone.

        Returns:
            For each text a list of ``{"score": ..., "token": ..., "token_str": ..., "sequence":
            ...}``, or one for each of its masks; that of the one text alone, where one is given.

        Raises:
            ConfigError: a number below 1, or targets that the pipeline refuses.
            DataError: something that is not a text, a text without a mask, or a folder without
                tokenizer.
        """
        if self.tokenizer is None:
            raise DataError("the folder has no tokenizer; save the model with one")
        for name, number in (("top_k", top_k), ("batch_size", batch_size)):
            if not isinstance(number, int) or number < 1:
                raise ConfigError(f"{name} is {number!r}; give a number from 1")
        single = isinstance(examples, str)
        texts = [examples] if single else list(examples)  # type: ignore[call-overload]
        if not texts:
            raise DataError("nothing to fill; give at least one text")
        self._check(texts)
        cut = {"truncation": True, "max_length": self._longest}
        options = {} if targets is None else {"targets": targets}
        try:
            fill: Any = _Pipeline(model=EngineModel(self._config, self), tokenizer=self.tokenizer)
            most = min(top_k, len(self.tokenizer))
            found: list[Any] = fill(
                texts, top_k=most, batch_size=batch_size, tokenizer_kwargs=cut, **options
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the pipeline refuses the targets: {first_line(error)}") from None
        # Of a list of one text the pipeline gives that text's answer.
        return found if single or len(texts) > 1 else [found]

    def _check(self, texts: list[Any]) -> None:
        """Refuse texts without a mask.

        Raises:
            DataError: such a text.
        """
        mask = self.tokenizer.mask_token_id
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"example {place} is {text!r}; give a text")
            ids = self.tokenizer(text, truncation=True, max_length=self._longest)["input_ids"]
            if mask not in ids:
                raise DataError(
                    f"example {place} has no {self.tokenizer.mask_token} in its first "
                    f"{self._longest} tokens; write it where a token is asked for"
                )
