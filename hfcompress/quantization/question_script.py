"""``example.py`` of a folder that answers questions: imports only the engine and `tokenizers`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from hfcompress.quantization.engine import SPAN_OUTPUTS
from hfcompress.quantization.example_script import ENGINES, source_of
from hfcompress.tasks.spans import (
    allowed_tokens,
    merged_answers,
    question_windows,
    ranked_spans,
    span_characters,
    span_probabilities,
)

_SCRIPT = '''\
"""Answer a question: python example.py "Who wrote it?" "Ada Lovelace wrote it in 1843."

Needs: pip install {packages}
"""

import json
import sys
from pathlib import Path

import numpy as np
{imports}
from tokenizers import Tokenizer

FOLDER = Path(__file__).parent
ENDS = {ends}
Answer = dict
# Tokens of a window, those that two windows share, and those of an answer.
WINDOW, SHARED, LONGEST = 384, 128, 15


def read(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


{functions}

{run}

def answer(question, context):
    manifest = read("hfcompress.json")
    settings = manifest["text"]
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = settings["split_special_tokens"]
    sequence = 0 if settings["padding_side"] == "left" else 1
    tokens = min(WINDOW, settings["max_length"])
    shared = min(SHARED, tokens // 2)
    found = []
    for window in question_windows(tokenizer, question, context, tokens, shared, not sequence):
        ids = np.array([window.ids], np.int64)
        arrays = {{
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.array([window.type_ids], np.int64),
        }}
        if "token_type_ids" not in settings["inputs"]:
            arrays["token_type_ids"] = np.zeros_like(ids)
        logits = np.asarray(run({{name: arrays[name] for name in manifest["inputs"]}}))[0]
        allowed = allowed_tokens(window, sequence)
        likely = span_probabilities(logits[:, : len(window.ids)], allowed)
        for score, first, last in ranked_spans(likely, LONGEST, 12):
            found.append((score, *span_characters(window, first, last, sequence)))
    return merged_answers(found, context, None, 1)[0]


def main(arguments):
    best = answer(*arguments)
    print(f"{{best['answer']}} {{best['score']:.4f}} {{best['start']}}-{{best['end']}}")


if __name__ == "__main__":
    main(sys.argv[1:3] or ["Who wrote it?", "Ada Lovelace wrote it in 1843."])
'''
_STACK = "np.stack([found[name] for name in ENDS], axis=1)"
_TORCH = (("return model(", "found = model("), (".logits\n", f"\n        return {_STACK}\n"))
# How the functions that run an engine end, and how they end where there are two outputs.
_ENDINGS: Mapping[str, tuple[tuple[str, str], ...]] = MappingProxyType(
    {
        "onnxruntime": (
            ("session.run(None, arrays)[0]", "np.stack(session.run(ENDS, arrays), axis=1)"),
        ),
        "openvino": (
            ("    return openvino", "    found = openvino"),
            ("(arrays)[0]\n", f"(arrays)\n    return {_STACK}\n"),
        ),
        "torch": _TORCH,
        "torchao": _TORCH,
    }
)


def question_script(backend: str) -> str:
    """Return the text of ``example.py`` of a model that answers questions.

    Args:
        backend: the engine that it uses.
    """
    packages, imports, run = ENGINES[backend]
    for old, new in _ENDINGS.get(backend, ()):
        run = run.replace(old, new)
    functions = (question_windows, allowed_tokens, span_probabilities, ranked_spans,
                 span_characters, merged_answers)  # fmt: skip
    return _SCRIPT.format(
        packages=f"{packages} tokenizers",
        imports=imports.replace("SequenceClassification", "QuestionAnswering"),
        ends=list(SPAN_OUTPUTS),
        functions="\n\n".join(source_of(function) for function in functions),
        run=run.replace("SequenceClassification", "QuestionAnswering"),
    )
