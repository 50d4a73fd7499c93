"""``Tagger``, ``MaskFiller`` and ``Segmenter``: transformers' pipelines around an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    FillMaskPipeline,
    ImageSegmentationPipeline,
    PreTrainedConfig,
    PreTrainedModel,
    TokenClassificationPipeline,
)
from transformers.modeling_outputs import TokenClassifierOutput

from hfcompress.errors import ConfigError, DataError, ModelError, first_line
from hfcompress.quantization.predictor import Predictor
from hfcompress.quantization.preparation import ImagePreparation, SavedProcessor, open_example
from hfcompress.tasks.outputs import OutputKind

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

    @property
    def dtype(self) -> torch.dtype:
        """Return fp32, which engines read."""
        return torch.float32

    def forward(self, **inputs: Tensor) -> TokenClassifierOutput:
        """Return the engine's logits."""
        arrays = {name: value.numpy() for name, value in inputs.items()}
        return TokenClassifierOutput(logits=torch.from_numpy(self._predictor.logits(arrays)))


class _Tagging(TokenClassificationPipeline):
    def check_model_type(self, supported_models: object) -> None:
        """Take an engine, which is in no list of models."""


class _Filling(FillMaskPipeline):
    def check_model_type(self, supported_models: object) -> None:
        """Take an engine, which is in no list of models."""


class _Segmenting(ImageSegmentationPipeline):
    def check_model_type(self, supported_models: object) -> None:
        """Take an engine, which is in no list of models."""


class _OfPipeline(Predictor):
    """A predictor whose answers a pipeline makes.

    Args:
        folder: with tokenizer and config.
        engine, labels, manifest: as in `Predictor`.
        shape: as in `load`.

    Attributes:
        tokenizer: of the folder; None without one.
    """

    _KIND: OutputKind

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        labels: list[str],
        manifest: Manifest,
        shape: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(engine, labels, None, manifest, shape, self._KIND)
        self.tokenizer: Any = None
        if "text" not in manifest:
            return
        here = {"local_files_only": True, "trust_remote_code": False}
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **here)  # nosec B615 # a folder
        self._config = AutoConfig.from_pretrained(folder, **here)  # nosec B615 # a folder
        self._longest = manifest["text"]["max_length"]

    def _texts(self, examples: object, **numbers: int) -> list[str]:
        """Return the texts of a call.

        Raises:
            ConfigError: one of the numbers is below 1.
            DataError: something that is not a text, no text, or a folder without tokenizer.
        """
        if self.tokenizer is None:
            raise DataError("the folder has no tokenizer; save the model with one")
        for name, number in numbers.items():
            if not isinstance(number, int) or number < 1:
                raise ConfigError(f"{name} is {number!r}; give a number from 1")
        given: Any = [examples] if isinstance(examples, str) else examples
        texts = list(given)
        if not texts:
            raise DataError("got no text; give at least one")
        for place, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"example {place} is {text!r}; give a text")
        return texts


class Tagger(_OfPipeline):
    """Texts in, tags of their words out, as ``pipeline("token-classification")`` gives them."""

    _KIND = "tokens"

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
        texts = self._texts(examples, batch_size=batch_size)
        try:
            tag: Any = _Tagging(  # type: ignore[no-untyped-call]
                model=EngineModel(self._config, self), tokenizer=self.tokenizer
            )
            found: list[Any] = tag(texts, batch_size=batch_size, **options)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the pipeline refuses the options: {first_line(error)}") from None
        return found[0] if isinstance(examples, str) else found


class MaskFiller(_OfPipeline):
    """Texts with masks in, tokens out, as ``pipeline("fill-mask")`` gives them.

    Its tokenizer's ``mask_token`` stands where a token is asked for.
    """

    _KIND = "masked"

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
        texts = self._texts(examples, top_k=top_k, batch_size=batch_size)
        self._check(texts)
        cut = {"truncation": True, "max_length": self._longest}
        options = {} if targets is None else {"targets": targets}
        try:
            fill: Any = _Filling(model=EngineModel(self._config, self), tokenizer=self.tokenizer)
            most = min(top_k, len(self.tokenizer))
            found: list[Any] = fill(
                texts, top_k=most, batch_size=batch_size, tokenizer_kwargs=cut, **options
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the pipeline refuses the targets: {first_line(error)}") from None
        # Of a list of one text the pipeline gives that text's answer.
        return found if isinstance(examples, str) or len(texts) > 1 else [found]

    def _check(self, texts: list[str]) -> None:
        """Refuse texts without a mask.

        Raises:
            DataError: such a text.
        """
        mask = self.tokenizer.mask_token_id
        for place, text in enumerate(texts):
            ids = self.tokenizer(text, truncation=True, max_length=self._longest)["input_ids"]
            if mask not in ids:
                raise DataError(
                    f"example {place} has no {self.tokenizer.mask_token} in its first "
                    f"{self._longest} tokens; write it where a token is asked for"
                )


class Segmenter(Predictor):
    """Images in, a mask for each label out, as ``pipeline("image-segmentation")`` gives them.

    Args:
        folder: with image processor and config.
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
        super().__init__(engine, labels, None, manifest, shape, "pixels")
        self._reads: ImagePreparation | None = None
        if not (folder / "preprocessor_config.json").is_file():
            return
        saved = SavedProcessor(folder)
        self._reads, self._processor = ImagePreparation(saved), saved.processor
        self._config = AutoConfig.from_pretrained(  # nosec B615 # a folder
            folder, local_files_only=True, trust_remote_code=False
        )

    def __call__(  # type: ignore[override]  # a mask is no score
        self, examples: object
    ) -> list[Any]:
        """Segment::

            segment = hfcompress.load("segmenter")
            segment("photo.jpg")    # [{"score": None, "label": "sky", "mask": <PIL.Image>}, ...]

        Args:
            examples: a path or an image, or a list of them; they are computed one by one, because
                their sizes differ.

        Returns:
            For each image a list with a label for each class that is in it, in the order of the
            classes, and its mask: an image of mode ``L`` of the same size, 255 where the class is;
            that of the one image alone, where one is given. transformers gives no score of a class.

        Raises:
            DataError: no image, something that is not an image, or a folder without image
                processor.
        """
        if self._reads is None:
            raise DataError("the folder has no image processor; save the model with one")
        rows, single = self._reads.rows(examples)
        segment: Any = _Segmenting(  # type: ignore[no-untyped-call]
            model=EngineModel(self._config, self), image_processor=self._processor
        )
        found = [segment(open_example(row).convert("RGB")) for row in rows]
        if not found:
            raise DataError("got no image; give at least one")
        return found[0] if single else found

    def predict(self, examples: object) -> list[Any]:
        """Return what a call does."""
        return self(examples)

    def _scores(self, examples: object, text_pair: object, batch_size: int) -> Any:
        raise ModelError("this model gives a class for each pixel, not scores of an image; call it")
