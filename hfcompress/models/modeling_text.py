"""Small text classifiers without attention: a convolutional and a recurrent one.

They are transformers models like any other: ``save_pretrained``, ``from_pretrained``, ``Trainer``
and ``pipeline`` know them, and the Auto classes do after ``import hfcompress``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from hfcompress.models.configuration_text import TextConfig
from hfcompress.models.configuration_text import register as register_config


class ConvolutionEncoder(nn.Module):
    """Convolutions of several widths over the tokens, side by side."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.embedding_size, config.width, kernel, padding=kernel // 2)
            for kernel in config.kernels
        )
        self.output_size = config.width * len(config.kernels)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """(batch, tokens, embedding), (batch, tokens) -> (batch, tokens, output_size)."""
        tokens = states.shape[1]
        channels = (states * mask[..., None]).transpose(1, 2)
        found = [F.gelu(convolution(channels))[..., :tokens] for convolution in self.convolutions]
        return torch.cat(found, dim=1).transpose(1, 2)


class RecurrentEncoder(nn.Module):
    """A bidirectional LSTM over the tokens that are not padding."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(
            config.embedding_size, config.width, batch_first=True, bidirectional=True
        )
        self.output_size = 2 * config.width

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """(batch, tokens, embedding), (batch, tokens) -> (batch, tokens, output_size)."""
        lengths = mask.sum(1).clamp_min(1).cpu()
        packed = pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
        found, _ = pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=states.shape[1]
        )
        return found


class TextForSequenceClassification(PreTrainedModel):
    """Embedding, convolutions or an LSTM, the largest and the mean value over the tokens, and a
    classifier."""

    config_class = TextConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(
            config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id
        )
        kind = ConvolutionEncoder if config.encoder == "cnn" else RecurrentEncoder
        self.encoder = kind(config)
        self.dropout = nn.Dropout(config.dropout)
        self.dense = nn.Linear(2 * self.encoder.output_size, config.dense_size)
        self.classifier = nn.Linear(config.dense_size, config.num_labels or 2)
        self.post_init()  # type: ignore[no-untyped-call]  # transformers leaves it untyped

    def get_input_embeddings(self) -> nn.Module:
        """The embedding table."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding table."""
        self.embeddings = value  # type: ignore[assignment]

    def _init_weights(self, module: nn.Module) -> None:
        """torch's own initialisation is the one that these layers are known to learn from."""
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Embedding, nn.LSTM)):
            module.reset_parameters()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: object,
    ) -> SequenceClassifierOutput:
        """Logits, and the cross-entropy where labels are given.

        Args:
            input_ids: (batch, tokens).
            attention_mask: (batch, tokens); 0 where padded, at the end; by default where
                ``input_ids`` is the padding token.
            labels: (batch,).
            kwargs: what tokenizers give beside it (token types); not used.
        """
        if attention_mask is None:
            attention_mask = input_ids != self.config.pad_token_id
        mask = attention_mask.bool()
        states = self.encoder(self.embeddings(input_ids), mask)
        unmasked = ~mask[..., None]
        largest = states.masked_fill(unmasked, torch.finfo(states.dtype).min).amax(1)
        mean = states.masked_fill(unmasked, 0).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
        pooled = self.dropout(torch.cat([largest, mean.to(largest.dtype)], dim=1))
        logits = self.classifier(self.dropout(F.gelu(self.dense(pooled))))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def register() -> None:
    """Register the models with the Auto classes."""
    register_config()
    AutoModelForSequenceClassification.register(
        TextConfig, TextForSequenceClassification, exist_ok=True
    )


register()
