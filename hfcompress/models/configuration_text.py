"""The config of the small text classifiers in modeling_text.py, which transformers reads first."""

from __future__ import annotations

from typing import Any, Literal

from transformers import PreTrainedConfig

from hfcompress.errors import ConfigError

Encoder = Literal["cnn", "lstm"]


class TextConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # transformers' own
    """Config of `TextForSequenceClassification`.

    Args:
        encoder: ``cnn``: convolutions of several widths side by side (Kim, 1408.5882); ``lstm``:
            one bidirectional LSTM (Tang et al., 1903.12136).
        vocab_size: of the tokenizer.
        embedding_size: width of the embedding.
        width: channels of each convolution, or size of the LSTM in each direction.
        kernels: widths of the convolutions, in tokens.
        dense_size: width of the layer before the classifier.
        dropout: before the dense layer and before the classifier.

    Raises:
        ConfigError: an unknown encoder.
    """

    model_type = "hfcompress-text"

    def __init__(
        self,
        encoder: Encoder = "cnn",
        vocab_size: int = 30522,
        embedding_size: int = 384,
        width: int = 128,
        kernels: tuple[int, ...] = (1, 2, 3, 4),
        dense_size: int = 128,
        dropout: float = 0.1,
        pad_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        if encoder not in ("cnn", "lstm"):
            raise ConfigError(f"encoder must be cnn or lstm, not {encoder!r}")
        self.encoder = encoder
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.width = width
        self.kernels = list(kernels)
        self.dense_size = dense_size
        self.dropout = dropout
        self.pad_token_id = pad_token_id
        super().__init__(**kwargs)


def register() -> None:
    """Register `TextConfig` with ``AutoConfig``."""
    from transformers import AutoConfig  # loading it is what calls this, see checkpoint/hook.py

    AutoConfig.register(TextConfig.model_type, TextConfig, exist_ok=True)
