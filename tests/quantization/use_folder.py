"""Run by test_model_folder: prints, as JSON, what folders give in a process without the model."""

from __future__ import annotations

import json
import sys

import numpy as np

import hfcompress

IDS = np.arange(5, 23, dtype=np.int64).reshape(2, 9)
MASK = np.array([[1] * 9, [1] * 5 + [0] * 4], np.int64)


def answer(folder: str) -> dict[str, object]:
    """Return the logits of fixed ids, and the labels of two sentences."""
    classify = hfcompress.load(folder)
    found = classify.logits({"input_ids": IDS, "attention_mask": MASK})
    return {
        "logits": found.astype(np.float64).tolist(),
        "classified": classify(["a good film", "the cast is dull and cold"]),
    }


if __name__ == "__main__":
    print(json.dumps({folder: answer(folder) for folder in sys.argv[1:]}))
