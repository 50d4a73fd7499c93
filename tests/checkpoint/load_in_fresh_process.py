"""Run by test_fresh_process: loads folders with hfcompress imported early, late or not at all.

``python load_in_fresh_process.py ORDER FOLDER...`` prints JSON: folder name -> logits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ORDER, FOLDERS = sys.argv[1], sys.argv[2:]
if ORDER == "hfcompress first":
    import hfcompress

    assert hfcompress.__version__
    assert "transformers" not in sys.modules, "importing hfcompress must stay cheap"

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


def answer(folder: str) -> list[list[float]]:
    """Logits for the inputs that lie beside the model."""
    inputs = load_file(Path(folder) / "inputs.safetensors")
    auto = "Image" if "pixel_values" in inputs else "Sequence"
    model: Any = getattr(transformers, f"AutoModelFor{auto}Classification").from_pretrained(folder)
    with torch.no_grad():
        found: list[list[float]] = model(**inputs).logits.double().tolist()
    return found


if ORDER == "transformers first":
    # The tables are loaded, and without hfcompress the checkpoint is refused.
    try:
        answer(FOLDERS[0])
    except RuntimeError as error:
        print(f"refused without hfcompress: {error}", file=sys.stderr)
    import hfcompress

print(json.dumps({Path(folder).name: answer(folder) for folder in FOLDERS}))
