"""The model card of a folder that is saved without a run, so that nothing was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hfcompress.models.hub import read_card, read_license

Relation = Literal["finetune", "quantized"]
README = "README.md"
_CACHED = re.compile(r"models--([^/\\]+)[/\\]snapshots[/\\]")


@dataclass(frozen=True)
class Origin:
    """Which model a saved one was made from, as far as its config and the hub's cache say.

    Attributes:
        base_model: its name on the hub; None for one that lies on this machine alone.
        license: what its card says.
    """

    base_model: str | None = None
    license: str | None = None


def origin_of(model: object) -> Origin:
    """Return what a model was loaded from; asks no network."""
    name = str(getattr(getattr(model, "config", None), "name_or_path", "") or "")
    if not name:
        return Origin()
    if cached := _CACHED.search(name):
        return Origin(cached[1].replace("--", "/"), read_license(Path(name)))
    if Path(name).is_dir():
        return Origin(_base_model(read_card(Path(name))), read_license(Path(name)))
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # not a name
        return Origin()
    if not isinstance(found, str):
        return Origin()
    return Origin(name, read_license(Path(found).parent))


def _base_model(card: Mapping[str, object]) -> str | None:
    """The base model that a card's metadata name, the first of several."""
    value = card.get("base_model")
    if isinstance(value, list):
        value = next(iter(value), None)
    return value if isinstance(value, str) else None


@dataclass(frozen=True)
class SavedCard:
    """What the card of a saved folder says.

    Attributes:
        title: heading.
        origin: what the model was made from.
        task: pipeline task of the hub; None where it is unknown.
        library: that loads it.
        tags: besides ``hfcompress``.
        made: Markdown that says how it was made.
        code: Python that loads it from ``FOLDER``.
        bytes: of the model's own files.
        relation: to the model that it was made from.
    """

    title: str
    origin: Origin
    task: str | None
    library: str
    tags: Sequence[str]
    made: str
    code: str
    bytes: int
    relation: Relation = "finetune"

    def text(self) -> str:
        """Return the text of the folder's README.md, with metadata for the hub."""
        from huggingface_hub import ModelCardData

        base = self.origin.base_model
        data = ModelCardData(
            base_model=base,
            base_model_relation=self.relation if base else None,
            library_name=self.library,
            license=self.origin.license,
            pipeline_tag=self.task,
            tags=["hfcompress", *self.tags],
        )
        return "\n".join([
            f"---\n{data.to_yaml()}\n---\n",
            f"# {self.title}\n",
            f"Made from {f'`{base}`' if base else 'a model'} with hfcompress; "
            f"{self.bytes:,} bytes.\n",
            "## How to load it\n",
            "FOLDER is this folder, or its name on the hub (pip install hfcompress).\n",
            f"```python\n{self.code.strip()}\n```\n",
            f"## How it was made\n\n{self.made.strip()}\n",
            "## Limits\n",
            "- Nothing was measured when it was saved; `hfcompress certify` says how much accuracy "
            "it may lose.",
            "- What the original model gets wrong or treats unfairly is not repaired here.\n",
        ])  # fmt: skip


def write_card(folder: Path, card: SavedCard) -> None:
    """Write a folder's README.md; one that is there stays."""
    path = folder / README
    if not path.exists():
        path.write_text(card.text(), encoding="utf-8")
