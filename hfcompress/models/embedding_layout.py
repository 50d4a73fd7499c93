"""``EmbeddingLayout``: how token states become a vector, as a sentence-transformers folder says it.

A folder has ``modules.json``, a list of modules: a Transformer in the folder itself, then Pooling,
Dense and Normalize, each in a folder of its own. Nothing that a folder names is imported or run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from hfcompress.errors import ModelError

Pooling = Literal["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
Activation = Literal["identity", "tanh", "relu", "gelu"]

MODULES = "modules.json"
TRANSFORMER, SETTINGS = "sentence_bert_config.json", "config_sentence_transformers.json"
_PREFIX = "sentence_transformers.models."
# Former names of the flags of Pooling, in the order in which their vectors are joined.
_FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS: dict[str, Activation] = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
}


@dataclass(frozen=True)
class DenseLayer:
    """A Linear behind the pooling.

    Attributes:
        inputs: its width.
        outputs: width of what it gives.
        bias: whether it has one.
        activation: what follows it.
    """

    inputs: int
    outputs: int
    bias: bool = True
    activation: Activation = "identity"


@dataclass(frozen=True)
class EmbeddingLayout:
    """What follows the token states.

    Attributes:
        pooling: modes, whose vectors are joined in this order.
        dense: layers behind the pooling.
        normalize: whether the vector has length 1.
        max_length: longest token sequence; None where the folder has no limit of its own.
        static: the folder has a table of token vectors (StaticEmbedding) and no transformer.
        transformer: other fields of the Transformer module's file.
        settings: ``config_sentence_transformers.json``: prompts, similarity.
    """

    pooling: tuple[Pooling, ...]
    dense: tuple[DenseLayer, ...] = ()
    normalize: bool = False
    max_length: int | None = None
    static: bool = False
    transformer: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides a vector and is not a weight."""
        known = (self.pooling, self.dense, self.normalize, self.max_length)
        return hashlib.sha256(repr(known).encode()).hexdigest()[:8]

    @property
    def prompts(self) -> dict[str, str]:
        """Texts that are put before an example, by name."""
        return {str(k): str(v) for k, v in (self.settings.get("prompts") or {}).items() if v}

    @property
    def default_prompt(self) -> str:
        """The text that is put before every example where nobody says otherwise; mostly empty."""
        return self.prompts.get(str(self.settings.get("default_prompt_name")), "")

    def width(self, hidden: int) -> int:
        """Return the vector's size for token states of width ``hidden``."""
        return self.dense[-1].outputs if self.dense else hidden * len(self.pooling)


def has_layout(folder: Path) -> bool:
    """Return whether a folder says how its token states become a vector."""
    return (folder / MODULES).is_file()


def read_layout(folder: Path) -> EmbeddingLayout:
    """Read the layout of a sentence-transformers folder.

    Raises:
        ModelError: no ``modules.json``, a pooling that it does not say, a module that is not one of
            those above, or a file that cannot be read.
    """
    where = str(folder)
    if not has_layout(folder):
        raise ModelError(
            f"model {where!r} has no {MODULES}, so it does not say how token states become a "
            f"vector; write model.pooling (mean, cls or max) and model.normalize"
        )
    modules = read_json(folder / MODULES)
    kinds = [(_kind(item, where), folder / str(item["path"])) for item in modules]
    if [kind for kind, _ in kinds][:1] == ["StaticEmbedding"]:
        return _static(kinds, folder)
    names = [kind for kind, _ in kinds]
    if names[:2] != ["Transformer", "Pooling"]:
        says = ", ".join(names) or "nothing"
        raise ModelError(
            f"{MODULES} of model {where!r} lists {says}; an embedding model is a Transformer, then "
            f"Pooling, then Dense and Normalize where it has them"
        )
    if Path(kinds[0][1]) != folder:
        raise ModelError(
            f"{MODULES} of model {where!r} keeps its Transformer in {kinds[0][1].name!r}; save the "
            f"model again with a current sentence-transformers, which keeps it in the folder itself"
        )
    own = read_json(folder / TRANSFORMER) if (folder / TRANSFORMER).is_file() else {}
    limit = own.pop("max_seq_length", None)
    if own.pop("do_lower_case", False):
        raise ModelError(
            f"{folder / TRANSFORMER} has do_lower_case, which changes texts before the tokenizer "
            f"reads them; save the model with a tokenizer that lowers case itself"
        )
    return EmbeddingLayout(
        pooling=_pooling(kinds[1][1]),
        dense=tuple(_dense(path) for kind, path in kinds[2:] if kind == "Dense"),
        normalize=_normalizes(names[2:], where),
        max_length=None if limit is None else int(limit),
        transformer=own,
        settings=_settings(folder),
    )


def _static(kinds: list[tuple[str, Path]], folder: Path) -> EmbeddingLayout:
    return EmbeddingLayout(
        pooling=("mean",),
        normalize=_normalizes([kind for kind, _ in kinds[1:]], str(folder)),
        static=True,
        settings=_settings(folder),
    )


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    return read_json(path) if path.is_file() else {}


def _kind(item: Any, where: str) -> str:
    """Return the last part of a module's class name."""
    known = ("Transformer", "Pooling", "Dense", "Normalize", "StaticEmbedding")
    try:
        name = str(item["type"])
        kind = name.rpartition(".")[2]
    except (TypeError, KeyError):
        raise ModelError(f"{MODULES} of model {where!r} lists something that is not a module; "
                         f"each entry needs type and path") from None  # fmt: skip
    if not name.startswith("sentence_transformers.") or kind not in known:
        raise ModelError(
            f"{MODULES} of model {where!r} has the module {name}; supported are {', '.join(known)}"
        )
    return kind


def _pooling(folder: Path) -> tuple[Pooling, ...]:
    path = folder / "config.json"
    data = read_json(path) if path.is_file() else {}
    given = data.get("pooling_mode")
    modes = [given] if isinstance(given, str) else list(given or ())
    if not modes:
        modes = [mode for flag, mode in _FLAGS.items() if data.get(flag)]
    unknown = [mode for mode in modes if mode not in get_args(Pooling)]
    if unknown or not modes:
        says = f"names the pooling {unknown[0]!r}" if unknown else "names no pooling"
        raise ModelError(
            f"{path} {says}; write pooling_mode: one of {', '.join(get_args(Pooling))}"
        )
    if data.get("include_prompt", True) is False:
        raise ModelError(f"{path} leaves prompts out of the pooling, which is not supported")
    return tuple(cast(Pooling, mode) for mode in modes)


def _dense(folder: Path) -> DenseLayer:
    path = folder / "config.json"
    data = read_json(path)
    name = str(data.get("activation_function", "torch.nn.modules.activation.Tanh"))
    keys = {data.get(key, "sentence_embedding") for key in ("module_input_name",)}
    keys |= {data.get("module_output_name") or "sentence_embedding"}
    if name not in _ACTIVATIONS or data.get("use_residual") or keys != {"sentence_embedding"}:
        raise ModelError(
            f"{path} has an activation, a residual or an input that is not supported; supported "
            f"are a Linear on the sentence's vector and {', '.join(_ACTIVATIONS)}"
        )
    try:
        sizes = int(data["in_features"]), int(data["out_features"])
    except (KeyError, ValueError, TypeError):
        raise ModelError(f"{path} needs in_features and out_features") from None
    return DenseLayer(*sizes, bool(data.get("bias", True)), _ACTIVATIONS[name])


def _normalizes(names: list[str], where: str) -> bool:
    """Return whether Normalize comes last; anything behind it would change what it does."""
    if "Normalize" in names[:-1] or {"Transformer", "Pooling", "StaticEmbedding"} & set(names):
        raise ModelError(
            f"{MODULES} of model {where!r} has modules in an order that is not supported; "
            f"Normalize comes last"
        )
    return names[-1:] == ["Normalize"]


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(f"{path} cannot be read as JSON; save the model again") from None


def write_layout(layout: EmbeddingLayout, folder: Path, hidden: int) -> list[Path]:
    """Write the files that sentence-transformers reads, and return the folders of Dense layers,
    whose weights the caller writes.

    Args:
        layout: what to write.
        folder: with the model's own files.
        hidden: width of the token states.
    """
    first = "StaticEmbedding" if layout.static else "Transformer"
    modules = [(first, "0_StaticEmbedding" if layout.static else "")]
    files: dict[str, Any] = {}
    if not layout.static:
        modules.append(("Pooling", "1_Pooling"))
        files["1_Pooling/config.json"] = _pooling_config(layout, hidden)
        files[TRANSFORMER] = {"do_lower_case": False, **layout.transformer} | (
            {} if layout.max_length is None else {"max_seq_length": layout.max_length}
        )
    dense = []
    for layer in layout.dense:
        dense.append(folder / f"{len(modules)}_Dense")
        modules.append(("Dense", dense[-1].name))
        files[f"{dense[-1].name}/config.json"] = _dense_config(layer)
    if layout.normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
        (folder / modules[-1][1]).mkdir(parents=True, exist_ok=True)
    files[SETTINGS] = dict(layout.settings)
    files[MODULES] = [
        {"idx": place, "name": str(place), "path": path, "type": _PREFIX + kind}
        for place, (kind, path) in enumerate(modules)
    ]
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return dense


def _pooling_config(layout: EmbeddingLayout, hidden: int) -> dict[str, Any]:
    size = {"word_embedding_dimension": hidden, "include_prompt": True}
    flags = {flag: mode in layout.pooling for flag, mode in _FLAGS.items()}
    if layout.pooling == tuple(mode for flag, mode in _FLAGS.items() if flags[flag]):
        return {**size, **flags}  # every version of sentence-transformers reads the flags
    return {**size, "pooling_mode": list(layout.pooling)}


def _dense_config(layer: DenseLayer) -> dict[str, Any]:
    names = {activation: name for name, activation in _ACTIVATIONS.items()}
    return {
        "in_features": layer.inputs,
        "out_features": layer.outputs,
        "bias": layer.bias,
        "activation_function": names[layer.activation],
    }
