"""Tagged sentences of `tiny_tokenizer`'s words, and a model that learns them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from transformers import BertForTokenClassification

from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import BAD, FILLER, GOOD, tiny_tokenizer

TAGS = ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]


def tagged_sentence(generator: random.Random) -> dict[str, Any]:
    """Filler with one or two names, which the words GOOD (PER) and BAD (LOC) are."""
    words = generator.choices(FILLER, k=generator.randint(2, 8))
    tags = ["O"] * len(words)
    for _ in range(generator.randint(1, 2)):
        kind, known = generator.choice([("PER", GOOD), ("LOC", BAD)])
        place, count = generator.randrange(len(words) + 1), generator.randint(1, 2)
        words[place:place] = generator.choices(known, k=count)
        tags[place:place] = [f"B-{kind}"] + [f"I-{kind}"] * (count - 1)
    return {"tokens": words, "ner_tags": tags}


def tagged_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences, the same for the same seed."""
    generator = random.Random(seed)
    return [tagged_sentence(generator) for _ in range(count)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines; returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def save_tagger(folder: Path, **config: Any) -> Path:
    """Save a tiny tagger with the names of `TAGS`, and its tokenizer; returns the folder."""
    model = tiny_bert(len(TAGS), kind=BertForTokenClassification, **config)
    model.config.id2label = dict(enumerate(TAGS))
    model.config.label2id = {name: number for number, name in enumerate(TAGS)}
    model.classifier.weight.data.mul_(20)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
