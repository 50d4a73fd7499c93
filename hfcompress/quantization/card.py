"""The model card of a quantized model that is saved without a run."""

from __future__ import annotations

import yaml
from torch import nn

from hfcompress.models.card import SavedCard, origin_of
from hfcompress.models.modeling_embedding import EmbeddingModel
from hfcompress.quantization.config import QuantizationConfig
from hfcompress.quantization.coverage import Coverage
from hfcompress.tasks.outputs import OutputKind
from hfcompress.tasks.registry import task_of_model

_CALLS: dict[str, tuple[str, str]] = {
    "ranking": ('.predict(("a query", "a passage"))', '"a query" "a passage"'),
    "masked": ('(f"a {model.tokenizer.mask_token} film")', '"a [MASK] film"'),
    "spans": (
        '(question="Who wrote it?", context="Ada Lovelace did.")',
        '"Who wrote it?" "Ada Lovelace did."',
    ),
}
"""By what a model answers: an example in Python, and as words of a command line."""

_ON_A_MAC = """\
import coremltools  # on macOS; an app loads the same package

model = coremltools.models.MLModel("FOLDER/model.mlpackage")
print(model.get_spec().description)  # the names and shapes that model.predict takes"""


def quantized_card(
    source: nn.Module,
    kind: OutputKind,
    images: bool,
    config: QuantizationConfig,
    coverage: Coverage,
    size: int,
) -> str:
    """Return a README.md that says what was quantized, what was not, and why.

    Args:
        source: the fp32 model.
        kind: what its logits mean.
        images: whether it reads images.
        config: how it was quantized.
        coverage: which modules are quantized.
        size: bytes of the model's own files.
    """
    task = task_of_model(source)
    call, words = _call(source, kind, images)
    fields = {"backend": config.backend, "mode": config.resolved_mode}
    step = yaml.safe_dump({"quantize": fields | config.non_default_fields()}, sort_keys=False)
    floating = "\n".join(
        f"- {count} modules: {reason}" for reason, count in coverage.reasons.items()
    )
    made = (
        f"Engine {config.backend}, mode {config.resolved_mode}: {coverage.share_of_bytes:.1%} of "
        f"the fp32 model's bytes are stored as integers, and {coverage.share_of_macs:.1%} of its "
        f"multiply-accumulates have integer weights.\n\n```yaml\n{step}```\n\n"
        f"What stays in floating point:\n\n{floating}\n"
    )
    code = f'import hfcompress\n\nmodel = hfcompress.load("FOLDER")\nprint(model{call})'
    shell = f"In a shell: `python example.py {words}`."
    if not config.runs_here:
        code, shell = _ON_A_MAC, f"On a Mac: `python example.py {words}`. It was not run here."
    return SavedCard(
        title=f"{type(source).__name__}, quantized", origin=origin_of(source),
        task=None if task is None else task.name, library="hfcompress",
        tags=["quantized", config.backend],
        made=f"{made}\n{shell}", code=code, bytes=size,
        relation="quantized",
    ).text()  # fmt: skip


def _call(source: nn.Module, kind: OutputKind, images: bool) -> tuple[str, str]:
    """An example of a call in Python, and the words of one in a shell."""
    if kind in _CALLS:
        return _CALLS[kind]
    what = '"photo.jpg"' if images else '"a sentence"'
    return (f".encode({what})" if isinstance(source, EmbeddingModel) else f"({what})"), what
