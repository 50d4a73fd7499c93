"""``LayerWatch``: a model's layer outputs, read by forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from hfcompress.distillation.teacher_outputs import LayerStates
from hfcompress.errors import ModelError
from hfcompress.models.architectures import attention_modules, blocks, value_projections
from hfcompress.training.outputs import is_transformers
from hfcompress.utils import unwrapped

_NO_MAPS = "returns no attention maps; set attention_weight to 0"


class LayerWatch:
    """Keeps the outputs of chosen layers from one forward pass until `take`.

    `close` removes the hooks and `open` sets them again.

    Args:
        model: the model with the layers. For attention maps it uses eager attention until
            `close`, because fused attention computes no maps.
        hidden: layers whose outputs to keep; layers count from 0.
        attentions: layers whose attention maps to keep.
        values: layers whose value projections to keep.

    Raises:
        ModelError: attention maps of a model without eager attention.
        TargetError: attention maps or values of an unknown model family.
    """

    def __init__(
        self,
        model: nn.Module,
        hidden: Collection[int] = (),
        attentions: Collection[int] = (),
        values: Collection[int] = (),
    ) -> None:
        self._model = model
        self._attentions = frozenset(attentions)
        self._kept: dict[str, dict[int, Tensor]] = {}
        self._armed = False
        self._handles: list[RemovableHandle] = []
        self._restore: Callable[[], object] = lambda: None
        self._hooks: list[tuple[nn.Module, Callable[..., None]]] = []
        layers = list(blocks(model).values()) if hidden else []
        for number in hidden:
            self._keep("hidden_states", number, layers[number], _first)
        if attentions:
            if not is_transformers(model):
                raise ModelError(f"{type(model).__name__} {_NO_MAPS}")
            modules = attention_modules(model)
            for number in attentions:
                self._keep("attentions", number, modules[number], _second)
        if values:
            modules, fused = value_projections(model)
            for number in values:
                self._keep("values", number, modules[number], _last_third if fused else _first)
        self.open()

    def take(self) -> LayerStates:
        """Return the outputs of the last forward pass and forget them.

        Raises:
            ModelError: attention maps are missing.
        """
        ran, kept = self._armed, self._kept
        self._kept, self._armed = {}, False
        attentions = kept.get("attentions", {})
        if ran and len(attentions) < len(self._attentions):
            raise ModelError(f"{type(self._model).__name__} {_NO_MAPS}")
        return LayerStates(
            hidden_states=kept.get("hidden_states", {}),
            attentions=attentions,
            values=kept.get("values", {}),
        )

    def open(self) -> None:
        """Set the hooks, unless they are set."""
        if self._handles or not self._hooks:
            return
        # Gradient checkpointing runs layers again in the backward pass; only a forward pass of
        # the whole model arms the hooks.
        self._handles.append(self._model.register_forward_pre_hook(self._arm))
        for module, hook in self._hooks:
            self._handles.append(module.register_forward_hook(hook))
        inner = unwrapped(self._model)
        if self._attentions and isinstance(inner, PreTrainedModel):
            self._restore = _eager(inner)

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._kept = [], {}
        self._restore()
        self._restore = lambda: None

    def _arm(self, module: nn.Module, inputs: object) -> None:
        self._kept, self._armed = {}, True

    def _keep(
        self, kind: str, number: int, module: nn.Module, pick: Callable[[object], Tensor | None]
    ) -> None:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            found = pick(output)
            if self._armed and found is not None:
                self._kept.setdefault(kind, {})[number] = found

        self._hooks.append((module, hook))


def _eager(model: PreTrainedModel) -> Callable[[], object]:
    """Set a model to eager attention; return a function that restores the previous one."""
    before = str(model.config._attn_implementation)
    if before == "eager":
        return lambda: None
    model.set_attn_implementation("eager")
    return lambda: model.set_attn_implementation(before)


def _first(output: object) -> Tensor | None:
    found = output[0] if isinstance(output, tuple) else output
    return cast(Tensor | None, found)


def _second(output: object) -> Tensor | None:
    return output[1] if isinstance(output, tuple) and len(output) > 1 else None


def _last_third(output: object) -> Tensor | None:
    return cast(Tensor, output).chunk(3, dim=-1)[2]
