"""``predict``: what a model's folder says of texts, line by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hfcompress.errors import ConfigError


def prediction_lines(directory: str | Path, examples: Sequence[str]) -> Iterator[str]:
    """Yield what a model's folder answers: labels, entities, or answers to questions.

    Args:
        directory: that ``quantize(...).save`` wrote.
        examples: texts, or paths of images; of a model that answers questions each question and
            its context.

    Raises:
        ConfigError: a question without its context.
        BadInputError: as `hfcompress.load`.
    """
    from hfcompress.quantization.load import load

    predictor: Any = load(directory)
    if predictor.kind == "spans":
        if len(examples) % 2:
            raise ConfigError(
                'this model reads a question and its context: predict FOLDER "Who wrote it?" '
                '"Ada Lovelace wrote it in 1843."'
            )
        pairs = list(zip(examples[::2], examples[1::2], strict=True))
        for (question, _), best in zip(pairs, predictor(pairs), strict=True):
            yield f"{best['answer']} {best['score']:.4f}  {question}"
    elif predictor.kind == "tokens":
        found = predictor(list(examples), aggregation_strategy="simple")
        for text, entities in zip(examples, found, strict=True):
            yield text
            for entity in entities:
                words = text[entity["start"] : entity["end"]]
                yield f"  {entity['entity_group']} {entity['score']:.4f}  {words}"
            if not entities:
                yield "  no entities"
    else:
        for text, best in zip(examples, predictor(list(examples)), strict=True):
            yield f"{best['label']} {best['score']:.4f}  {text}"
