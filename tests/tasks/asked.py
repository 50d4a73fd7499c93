"""Questions on `tiny_tokenizer`'s words in the form of SQuAD, and a model that answers them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from transformers import BertForQuestionAnswering

from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import BAD, FILLER, GOOD, tiny_tokenizer


def asked_row(
    generator: random.Random, number: int, answerable: bool = True, filler: int = 8
) -> dict[str, Any]:
    """A context of filler; the answer to "good" or "bad" is one or two words of GOOD or of BAD."""
    words = generator.choices(FILLER, k=generator.randint(2, filler))
    kind, known, others = generator.choice([("good", GOOD, BAD), ("bad", BAD, GOOD)])
    answer = generator.choices(known[1:], k=generator.randint(1, 2))
    place = generator.randrange(len(words) + 1)
    words[place:place] = answer if answerable else [generator.choice(others)]
    starts = [len(" ".join([*words[:place], ""]))] if answerable else []
    return {
        "id": str(number),
        "question": f"the {kind} film",
        "context": " ".join(words),
        "answers": {"text": [" ".join(answer)] if answerable else [], "answer_start": starts},
    }


def asked_rows(
    count: int, seed: int = 0, unanswerable: int = 0, filler: int = 8
) -> list[dict[str, Any]]:
    """Questions, the same for the same seed, the first ones without an answer."""
    generator = random.Random(seed)
    return [asked_row(generator, n, n >= unanswerable, filler) for n in range(count)]


def reader(**config: Any) -> Any:
    """A tiny model whose answers differ from question to question."""
    model = tiny_bert(2, kind=BertForQuestionAnswering, **config)
    model.qa_outputs.weight.data.mul_(20)
    return model


def save_reader(folder: Path, **config: Any) -> Path:
    """Save `reader` and its tokenizer; returns the folder."""
    reader(**config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
