"""``example.py`` of a folder of a model of texts: imports only the engine, and `tokenizers`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hfcompress.tasks.outputs import OutputKind, label_scores, masked_tokens, word_scores

_TEXT_SCRIPT = '''\
"""{title}

Needs: pip install {packages}
"""

import json
import sys
from pathlib import Path

import numpy as np
{imports}
from tokenizers import Tokenizer

FOLDER = Path(__file__).parent


def read(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def make_tokenizer(settings):
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.enable_truncation(settings["max_length"], direction=settings["truncation_side"])
    tokenizer.enable_padding(
        direction=settings["padding_side"],
        pad_id=settings["pad_id"],
        pad_type_id=settings["pad_type_id"],
        pad_token=settings["pad_token"],
    )
    tokenizer.encode_special_tokens = settings["split_special_tokens"]
    return tokenizer


def as_arrays(rows, names):
    ids = np.array([row.ids for row in rows], np.int64)
    arrays = {{
        "input_ids": ids,
        "attention_mask": np.array([row.attention_mask for row in rows], np.int64),
        "token_type_ids": np.array([row.type_ids for row in rows], np.int64),
    }}
    unused = {{"attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}}
    return {{name: arrays[name] if name in names else unused[name] for name in arrays}}


{scores}

{run}

def main(sentences):
    manifest, labels = read("hfcompress.json"), read("config.json")["id2label"]
    rows = make_tokenizer(manifest["text"]).encode_batch({examples})
    arrays = as_arrays(rows, manifest["text"]["inputs"])
    logits = np.asarray(run({{name: arrays[name] for name in manifest["inputs"]}}))
{answer}

if __name__ == "__main__":
    main(sys.argv[1:] or {default})
'''
_EMBEDDING_SCRIPT = '''\
"""Compare sentences with this folder: python example.py "a gripping film" "a thrilling movie"

Needs: pip install {packages}
"""

import json
import sys
from pathlib import Path

import numpy as np
{imports}
from tokenizers import Tokenizer

FOLDER = Path(__file__).parent


def read(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


{tokenizing}

{run}

def main(sentences):
    manifest = read("hfcompress.json")
    rows = make_tokenizer(manifest["text"]).encode_batch(sentences)
    arrays = as_arrays(rows, manifest["text"]["inputs"])
    vectors = np.asarray(run({{name: arrays[name] for name in manifest["inputs"]}}))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for sentence, cosine in zip(sentences[1:], vectors[1:] @ vectors[0]):
        print(f"{{cosine:.4f}} {{sentences[0]}} | {{sentence}}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["a gripping film", "a thrilling movie", "a tax form"])
'''
_TORCH_EMBEDDING_SCRIPT = '''\
"""Compare sentences with this folder: python example.py "a gripping film" "a thrilling movie"

Needs: pip install {packages}
"""

import sys
from pathlib import Path

import hfcompress


def main(sentences):
    cosines = hfcompress.load(Path(__file__).parent).similarity(sentences[:1], sentences[1:])
    for sentence, cosine in zip(sentences[1:], cosines[0]):
        print(f"{{cosine:.4f}} {{sentences[0]}} | {{sentence}}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["a gripping film", "a thrilling movie", "a tax form"])
'''
_FIT_ROWS = """\
def fit_rows(arrays, shapes):
    # The file reads one row of one shape: texts are padded to its length, tokens are int32.
    rows = []
    for place in range(len(arrays[0])):
        row = []
        for number, (array, shape) in enumerate(zip(arrays, shapes)):
            part = array[place : place + 1]
            if part.ndim == 2:
                fill = read("hfcompress.json")["text"]["pad_id"] if number == 0 else 0
                part = np.pad(part, ((0, 0), (0, shape[1] - part.shape[1])), constant_values=fill)
            row.append(part.astype(np.float32 if part.dtype.kind == "f" else np.int32))
        rows.append(row)
    return rows
"""


@dataclass(frozen=True)
class _Answers:
    """How a script of texts says what a model answers.

    Attributes:
        title: of the script.
        head: end of the name of transformers' Auto class.
        functions: that the script needs.
        answer: body of ``main`` behind the logits.
        default: arguments where none are given.
        examples: what is encoded.
    """

    title: str
    head: str
    functions: tuple[Callable[..., object], ...]
    answer: str
    default: str
    examples: str = "sentences"


_LABELS = _Answers(
    'Classify sentences with this folder: python example.py "a gripping film" "a dull one"',
    "SequenceClassification",
    (label_scores,),
    """\
    for sentence, row in zip(sentences, label_scores(logits, manifest["output"])):
        print(f"{labels[str(row.argmax())]} {row.max():.4f} {sentence}")
""",
    '["a gripping film", "a dull one"]',
)
_TAGS = _Answers(
    'Tag the words of sentences with this folder: python example.py "Ada Lovelace lived in London"',
    "TokenClassification",
    (label_scores, word_scores),
    """\
    scores = label_scores(logits, manifest["output"])
    for sentence, row, tokens in zip(sentences, rows, scores):
        for word, best in word_scores(sentence, row.offsets, tokens):
            print(f"{labels[str(best.argmax())]} {best.max():.4f} {word}")
""",
    '["Ada Lovelace lived in London"]',
)
_SCORES = _Answers(
    'Score passages for a query: python example.py "who wrote Hamlet" "Shakespeare did" "a town"',
    "SequenceClassification",
    (label_scores,),
    """\
    says = read("config.json").get("sentence_transformers") or {}
    if not str(says.get("activation_fn")).endswith("Identity"):
        logits = label_scores(logits, manifest["output"])
    for passage, score in zip(sentences[1:], logits[:, 0]):
        print(f"{score:.4f} {passage}")
""",
    '["who wrote Hamlet", "Hamlet is a play by Shakespeare", "Hamlet is a village"]',
    "[(sentences[0], passage) for passage in sentences[1:]]",
)
_MASKED = _Answers(
    'Find the token behind a mask with this folder: python example.py "a [MASK] film"',
    "MaskedLM",
    (label_scores, masked_tokens),
    """\
    scores = label_scores(logits, manifest["output"])
    tokenizer = make_tokenizer(manifest["text"])
    for sentence, row, tokens in zip(sentences, rows, scores):
        for place in masked_tokens(row.tokens, tokens, manifest["text"]["mask_token"], 5):
            for number, score in place:
                token = tokenizer.decode([number], skip_special_tokens=False)
                print(f"{score:.4f} {token} {sentence}")
""",
    '["a " + read("hfcompress.json")["text"]["mask_token"] + " film"]',
)
_ANSWERS: Mapping[OutputKind, _Answers] = MappingProxyType(
    {
        "classification": _LABELS,
        "multi_label": _LABELS,
        "regression": _LABELS,
        "tokens": _TAGS,
        "masked": _MASKED,
        "ranking": _SCORES,
    }
)
ENGINES = {
    "onnxruntime": (
        "onnxruntime",
        "import onnxruntime",
        """\
def run(arrays):
    # This fusion makes the model slower.
    session = onnxruntime.InferenceSession(
        str(FOLDER / "model.onnx"), disabled_optimizers=["SkipLayerNormFusion"]
    )
    return session.run(None, arrays)[0]
""",
    ),
    "openvino": (
        "openvino",
        "import openvino",
        """\
def run(arrays):
    floats = read("hfcompress.json")["quantization"]["floats"]
    options = {} if floats == "auto" else {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(FOLDER / "model.xml", "CPU", options)(arrays)[0]
""",
    ),
    "torch": (
        "hfcompress",
        "import hfcompress  # registers the loading of int8 weights with transformers\n"
        "import torch\n"
        "from transformers import AutoModelForSequenceClassification",
        """\
def run(arrays):
    model = AutoModelForSequenceClassification.from_pretrained(
        FOLDER, trust_remote_code=False, local_files_only=True, use_safetensors=True
    )
    with torch.no_grad():
        return model(**{name: torch.from_numpy(array) for name, array in arrays.items()}).logits
""",
    ),
    "executorch": (
        "executorch",
        "import torch\nfrom executorch.runtime import Runtime",
        _FIT_ROWS
        + """

def run(arrays):
    program = Runtime.get().load_program((FOLDER / "model.pte").read_bytes())
    method = program.load_method("forward")
    count = method.metadata.num_inputs()
    shapes = [tuple(method.metadata.input_tensor_meta(place).sizes()) for place in range(count)]
    rows = fit_rows(list(arrays.values()), shapes)
    return np.concatenate([
        method.execute([torch.from_numpy(array) for array in row])[0].numpy() for row in rows
    ])
""",
    ),
    "litert": (
        "ai-edge-litert",
        "from ai_edge_litert.interpreter import Interpreter",
        _FIT_ROWS
        + """

def run(arrays):
    runner = Interpreter(model_path=str(FOLDER / "model.tflite")).get_signature_runner()
    details = runner.get_input_details()
    names = [f"args_{place}" for place in range(len(details))]
    rows = fit_rows(list(arrays.values()), [tuple(details[name]["shape"]) for name in names])
    return np.concatenate([
        next(iter(runner(**dict(zip(names, row))).values())) for row in rows
    ])
""",
    ),
    "coreml": (
        "coremltools",
        "import coremltools",
        _FIT_ROWS
        + """

def run(arrays):
    # Core ML runs on macOS; this was not run where the package was made.
    model = coremltools.models.MLModel(str(FOLDER / "model.mlpackage"))
    inputs = model.get_spec().description.input
    shapes = [tuple(item.type.multiArrayType.shape) for item in inputs]
    return np.concatenate([
        model.predict({item.name: part for item, part in zip(inputs, row)})["logits"]
        for row in fit_rows([arrays[item.name] for item in inputs], shapes)
    ])
""",
    ),
    "torchao": (
        "torchao transformers",
        "import torch\nfrom transformers import AutoModelForSequenceClassification",
        """\
def run(arrays):
    model = AutoModelForSequenceClassification.from_pretrained(
        FOLDER, trust_remote_code=False, local_files_only=True, use_safetensors=True
    )
    with torch.no_grad():
        return model(**{name: torch.from_numpy(array) for name, array in arrays.items()}).logits
""",
    ),
}


def embedding_script(backend: str, graph: str) -> str:
    """Return the text of ``example.py`` of an embedding model.

    Args:
        backend: the engine that it uses.
        graph: path of the engine's main file; empty where hfcompress loads it.
    """
    packages, imports, run = ENGINES[backend]
    if not graph:
        packages = "hfcompress" if backend == "torch" else "hfcompress torchao"
        return _TORCH_EMBEDDING_SCRIPT.format(packages=packages)
    begin, end = (_TEXT_SCRIPT.index(mark) for mark in ("def make_tokenizer", "{scores}"))
    usual = {"onnxruntime": "model.onnx", "openvino": "model.xml"}[backend]
    return _EMBEDDING_SCRIPT.format(
        packages=f"{packages} tokenizers",
        imports=imports,
        tokenizing=_TEXT_SCRIPT[begin:end].strip().replace("{{", "{").replace("}}", "}") + "\n",
        run=run.replace(f'"{usual}"', f'"{graph}"'),
    )


def example_script(backend: str, kind: OutputKind = "classification") -> str:
    """Return the text of ``example.py`` of a model that reads sentences.

    Args:
        backend: the engine that it uses.
        kind: what the logits mean.
    """
    packages, imports, run = ENGINES[backend]
    tokenizers = " tokenizers" if backend not in ("torch", "torchao") else ""
    answers = _ANSWERS[kind]
    imports, run = (text.replace("SequenceClassification", answers.head) for text in (imports, run))
    return _TEXT_SCRIPT.format(
        title=answers.title,
        packages=packages + tokenizers,
        imports=imports,
        scores="\n\n".join(source_of(function) for function in answers.functions),
        run=run,
        examples=answers.examples,
        answer=answers.answer,
        default=answers.default,
    )


def source_of(function: Callable[..., object]) -> str:
    """Return the source of a function that has a docstring, without type annotations."""
    _, body = inspect.getsource(function).split('"""', 1)
    parameters = ", ".join(
        name if one.default is one.empty else f"{name}={one.default!r}"
        for name, one in inspect.signature(function).parameters.items()
    )
    return f'def {function.__name__}({parameters}):\n    """{body}'
