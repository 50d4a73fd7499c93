"""``EmbeddingModel``: a transformer whose output is one vector for each text.

It is the transformer's own class with another ``forward``: names of modules, config, files and
``from_pretrained`` are the transformer's, so that whatever prunes, shrinks, trains or exports it
needs to know nothing of vectors.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.generic import ModelOutput

from hfcompress.errors import ConfigError, ModelError
from hfcompress.models.embedding_layout import (
    SETTINGS,
    Activation,
    DenseLayer,
    EmbeddingLayout,
    Pooling,
    has_layout,
    read_layout,
    write_layout,
)

DENSE = "sentence_dense"
_MODULES: dict[Activation, type[nn.Module]] = {
    "identity": nn.Identity,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
}


@dataclass
class EmbeddingOutput(ModelOutput):
    """What an `EmbeddingModel` returns.

    Attributes:
        logits: the vectors, [batch, size], under the name of every model's outputs.
        last_hidden_state: the token states, [batch, tokens, width].
        hidden_states: of every layer, where asked for.
        attentions: likewise.
    """

    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    @property
    def sentence_embedding(self) -> Tensor | None:
        """The vectors."""
        return self.logits


class DenseHead(nn.Module):
    """A Dense layer behind the pooling.

    It is not compressed, so it is not an ``nn.Linear``. It is not trained, so that its own file
    holds its weights whatever checkpoint a training resumes from.

    Args:
        layer: its sizes and activation.
    """

    def __init__(self, layer: DenseLayer) -> None:
        super().__init__()
        linear = nn.Linear(layer.inputs, layer.outputs, layer.bias)
        self.weight, self.bias = linear.weight, linear.bias
        self.activation = _MODULES[layer.activation]()
        self.requires_grad_(False)

    def forward(self, vectors: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, outputs)."""
        found: Tensor = self.activation(F.linear(vectors, self.weight, self.bias))
        return found


class EmbeddingModel(PreTrainedModel):  # type: ignore[no-untyped-call]  # transformers' own
    """Base of the classes that `embedding_class` makes.

    Attributes:
        layout: how token states become a vector; `set_layout` sets it.
    """

    layout: EmbeddingLayout

    def set_layout(self, layout: EmbeddingLayout, folder: Path | None = None) -> None:
        """Set how token states become a vector.

        Args:
            layout: pooling, dense layers, normalisation.
            folder: with the weights of its dense layers; None leaves them at random.

        Raises:
            ModelError: weights that are missing or do not fit.
        """
        self.layout = layout
        if not layout.dense:
            return
        layers = nn.ModuleList(DenseHead(item) for item in layout.dense)
        layers.to(self.device, self.dtype)
        setattr(self, DENSE, layers)
        if folder is not None:
            for place, layer in enumerate(layers):
                _read_dense(cast(DenseHead, layer), folder, place + 2)

    def take_layout(self, other: EmbeddingModel) -> None:
        """Set the layout of another model, with the weights of its dense layers.

        Raises:
            ModelError: dense layers for vectors of another size.
        """
        width = int(self.config.hidden_size) * len(other.layout.pooling)
        if other.layout.dense and other.layout.dense[0].inputs != width:
            raise ModelError(
                f"the Dense layer behind the pooling reads {other.layout.dense[0].inputs} values "
                f"and the student pools {width}; keep the teacher's hidden size"
            )
        self.set_layout(other.layout)
        if other.layout.dense:
            self.get_submodule(DENSE).load_state_dict(other.get_submodule(DENSE).state_dict())

    @property
    def vector_size(self) -> int:
        """Number of values of a vector."""
        return self.layout.width(int(self.config.hidden_size))

    def embed(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """Return the vectors, [batch, size].

        Args:
            states: of the tokens, [batch, tokens, width].
            mask: [batch, tokens], 0 where padded; None where nothing is.
        """
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        vectors = torch.cat([pool(states, mask, mode) for mode in self.layout.pooling], dim=-1)
        for layer in getattr(self, DENSE, ()):
            vectors = layer(vectors)
        return F.normalize(vectors, dim=-1) if self.layout.normalize else vectors

    @classmethod
    def from_pretrained(cls, location: Any, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        """As of transformers; the layout is read where the folder has one."""
        loaded = super().from_pretrained(location, *args, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        folder = layout_folder(location, options.get("revision"))
        if has_layout(folder):
            model.set_layout(read_layout(folder), folder)
        return loaded

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:  # type: ignore[override]
        """Save it as sentence-transformers does: the transformer's files, and what follows it."""
        given = options.pop("state_dict", None) or self.state_dict()
        own = {name: value for name, value in given.items() if not name.startswith(f"{DENSE}.")}
        super().save_pretrained(save_directory, state_dict=own, **options)
        save_layout(self, Path(save_directory))

    def __reduce__(self) -> tuple[object, ...]:
        base = type(self).__mro__[2]
        return _empty, (base,), self.__dict__


def _empty(base: type[PreTrainedModel]) -> EmbeddingModel:
    """Return an uninitialised instance, for pickles and copies."""
    kind = embedding_class(base)
    return kind.__new__(kind)


def embedding_class(base: type[PreTrainedModel]) -> type[EmbeddingModel]:
    """Return the class of embedding models on a transformer's class, always the same one; it has
    that class's name.

    Args:
        base: such as ``BertModel``, whose output has ``last_hidden_state``.
    """
    return _made(cast(Hashable, base))


@functools.cache
def _made(base: Any) -> type[EmbeddingModel]:
    run: Callable[..., Any] = base.forward

    @functools.wraps(run)
    def forward(self: EmbeddingModel, *args: Any, **kwargs: Any) -> EmbeddingOutput:
        kwargs.pop("labels", None)
        found = run(self, *args, **kwargs)
        given = inspect.signature(run).bind_partial(self, *args, **kwargs).arguments
        states = found.last_hidden_state
        return EmbeddingOutput(
            logits=self.embed(states, given.get("attention_mask")),
            last_hidden_state=states,
            hidden_states=found.get("hidden_states"),
            attentions=found.get("attentions"),
        )

    names = {"forward": forward, "__module__": base.__module__}
    return type(base.__name__, (EmbeddingModel, base), names)


def pool(states: Tensor, mask: Tensor, mode: Pooling) -> Tensor:
    """Return one vector for each row of token states, padding left out.

    Args:
        states: [batch, tokens, width].
        mask: [batch, tokens], non-zero where a token counts.
        mode: as sentence-transformers names them.
    """
    real = mask != 0
    if mode == "max":
        lowest = torch.finfo(states.dtype).min
        return states.masked_fill(~real[..., None], lowest).amax(1)
    weights = real.to(states.dtype)
    if mode == "weightedmean":
        weights = weights * weights.cumsum(1)
    elif mode in ("cls", "lasttoken"):
        count = weights.cumsum(1)
        weights = weights * (count == (1 if mode == "cls" else count[:, -1:]))
    total = (states * weights[..., None]).sum(1)
    count = weights.sum(1, keepdim=True).clamp_min(1e-9)
    return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


class AutoEmbeddingModel:
    """Loads embedding models, as the Auto classes of transformers load others."""

    @classmethod
    def from_pretrained(
        cls,
        location: str | Path,
        *,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
        **options: Any,
    ) -> Any:
        """Return the embedding model of a sentence-transformers folder or hub name.

        Args:
            location: with the transformer's files and ``modules.json``.
            pooling: for a folder that does not say it.
            normalize: likewise; by default vectors keep their length.
            options: of ``from_pretrained``.

        Returns:
            the model in eval mode; with ``output_loading_info`` also what was missing.

        Raises:
            ModelError: a pooling that the folder does not say, or one that contradicts it; a model
                that is not an encoder.
        """
        folder = layout_folder(location, options.get("revision"))
        layout = chosen_layout(folder, str(location), pooling, normalize)
        known = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
        config = AutoConfig.from_pretrained(location, **known)  # nosec B615 # in options
        kind = embedding_class(base_class(config, str(location)))
        loaded = kind.from_pretrained(location, **options)
        if not has_layout(folder):
            (loaded[0] if isinstance(loaded, tuple) else loaded).set_layout(layout)
        return loaded


def pooling_options(
    auto_class: object, pooling: Pooling | None, normalize: bool | None
) -> dict[str, object]:
    """Return the options of ``from_pretrained`` that say how a vector is made.

    Args:
        auto_class: that loads the model.
        pooling, normalize: as the user says it; None where the folder does.

    Raises:
        ConfigError: it is said of a model of another task.
    """
    said = {"pooling": pooling, "normalize": normalize}
    options: dict[str, object] = {name: one for name, one in said.items() if one is not None}
    if options and auto_class is not AutoEmbeddingModel:
        raise ConfigError(
            f"model.{next(iter(options))} is for embedding models (task: sentence-similarity); "
            f"leave it out"
        )
    return options


def limit_texts(model: EmbeddingModel, tokenizer: object, name: str) -> str:
    """Give a tokenizer the longest text of an embedding model's folder, and return what a
    fingerprint of the model says of its vectors.

    Args:
        model: of the folder.
        tokenizer: changed in place; None is left alone.
        name: the model's, for the message.

    Raises:
        ModelError: the folder puts a prompt before every text, which the data do not have.
    """
    if model.layout.default_prompt:
        raise ModelError(
            f"model {name!r} puts {model.layout.default_prompt!r} before every text; write it into "
            f"the data, and set default_prompt_name to null in {SETTINGS}"
        )
    limit = model.layout.max_length
    if limit is not None and isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer.model_max_length = min(int(tokenizer.model_max_length), limit)
    return f"+{model.layout.fingerprint}"


def as_embedding_model(model: PreTrainedModel, layout: EmbeddingLayout) -> EmbeddingModel:
    """Return the embedding model that shares a transformer's modules and config.

    Args:
        model: such as a ``BertModel``.
        layout: how its token states become a vector.
    """
    made = _empty(type(model))
    made.__dict__.update(model.__dict__)
    made.set_layout(layout)
    return made


def base_class(config: PreTrainedConfig, where: str) -> type[PreTrainedModel]:
    """Return the class of the transformer that a config names.

    Raises:
        ModelError: a model without an encoder's token states.
    """
    found: Any = AutoModel._model_mapping.get(type(config), None)
    found = found[0] if isinstance(found, tuple) else found
    if found is None or config.is_encoder_decoder:
        raise ModelError(
            f"model {where!r} is a {config.model_type}, which is not an encoder of texts; give an "
            f"encoder such as BERT, RoBERTa, DistilBERT or MPNet"
        )
    return cast("type[PreTrainedModel]", found)


def chosen_layout(
    folder: Path, where: str, pooling: Pooling | None, normalize: bool | None
) -> EmbeddingLayout:
    """Return a folder's layout, or the one that the user states where the folder has none.

    Raises:
        ModelError: neither says the pooling, or they contradict each other.
    """
    if pooling is None or has_layout(folder):
        layout = read_layout(folder)
        if pooling not in (None, *layout.pooling) or normalize not in (None, layout.normalize):
            says = f"{'+'.join(layout.pooling)}, {'' if layout.normalize else 'not '}normalized"
            raise ModelError(
                f"model {where!r} says its own pooling ({says}); leave model.pooling and "
                f"model.normalize out"
            )
        return layout
    return EmbeddingLayout(pooling=(pooling,), normalize=bool(normalize))


def save_layout(model: EmbeddingModel, folder: Path) -> None:
    """Write the files that say how token states become a vector."""
    weights = getattr(model, DENSE, ())
    paths = write_layout(model.layout, folder, int(model.config.hidden_size))
    for path, layer in zip(paths, weights, strict=True):
        tensors = {
            f"linear.{name}": value.detach().cpu().contiguous()
            for name, value in cast(DenseHead, layer).state_dict().items()
        }
        save_file(tensors, path / "model.safetensors", {"format": "pt"})


def _read_dense(layer: DenseHead, folder: Path, place: int) -> None:
    path = folder / f"{place}_Dense" / "model.safetensors"
    if not path.is_file():
        raise ModelError(
            f"{path} is missing, so the model has no weights for its Dense layer; save it again "
            f"with safe_serialization"
        )
    tensors = {name.removeprefix("linear."): value for name, value in load_file(path).items()}
    try:
        layer.load_state_dict(tensors)
    except RuntimeError:
        raise ModelError(f"{path} does not fit the sizes in its config.json") from None


def layout_folder(location: str | Path, revision: object) -> Path:
    """Return the folder of the small files; those of a hub name are fetched."""
    if Path(location).is_dir():
        return Path(location)
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*/config.json", "*_Dense/model.safetensors"]
    found: str = snapshot_download(
        str(location), revision=str(revision) if revision else None, allow_patterns=patterns
    )
    return Path(found)
