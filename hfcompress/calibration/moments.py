"""First and second moments of a layer's inputs and wanted outputs, padding left out.

A convolution is a matrix product of its unfolded input, one product for each group, so all
statistics carry a leading dimension of groups: 1 for ``nn.Linear`` and ``Conv1D``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from hfcompress.measure.macs import CONVOLUTIONS
from hfcompress.models.matrices import inputs_first, weight_matrix


@dataclass(frozen=True)
class Moments:
    """Averages over ``count`` tokens (or pixels).

    Attributes:
        count: how many tokens, or the sum of their weights.
        gram: E x x', groups x inputs x inputs.
        mean: E x, groups x inputs.
        cross: E y x', groups x outputs x inputs, y what the layer should put out; None when
            that is what its dense weight makes of x.
        output: E y, groups x outputs; None likewise.
    """

    count: float
    gram: Tensor
    mean: Tensor
    cross: Tensor | None = None
    output: Tensor | None = None

    @property
    def norm(self) -> Tensor:
        """Root mean square of each input, groups x inputs."""
        return self.gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()


class MomentSum:
    """Adds up moments batch by batch; modules that read the same input share the Gram matrix."""

    def __init__(self) -> None:
        self.count = 0.0
        self._gram: Tensor | None = None
        self._mean: Tensor | None = None
        self._averages: tuple[Tensor, Tensor] | None = None
        self._cross: dict[str, Tensor] = {}
        self._output: dict[str, Tensor] = {}

    def add(
        self,
        inputs: Tensor,
        outputs: dict[str, Tensor] | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            inputs: groups x tokens x inputs.
            outputs: what each module should put out, groups x tokens x outputs, by name.
            weights: tokens; how much each counts, all alike by default.
        """
        # float32 throughout: products of a lower precision would not stay positive definite.
        inputs = inputs.float()
        root = None if weights is None else weights.float().sqrt()[:, None]
        scaled = inputs if root is None else inputs * root
        self.count += inputs.shape[1] if weights is None else float(weights.sum())
        self._gram = _added(self._gram, scaled.mT @ scaled)
        self._mean = _added(self._mean, (scaled if root is None else scaled * root).sum(1))
        for name, output in (outputs or {}).items():
            goal = output.float() if root is None else output.float() * root
            self._cross[name] = _added(self._cross.get(name), goal.mT @ scaled)
            self._output[name] = _added(
                self._output.get(name), (goal if root is None else goal * root).sum(1)
            )

    def moments(self, name: str) -> Moments:
        """The averages for one of the modules; nothing can be added afterwards."""
        if self._averages is None:
            assert self._gram is not None
            assert self._mean is not None
            self._averages = self._gram.div_(self.count), self._mean.div_(self.count)
        cross, output = self._cross.get(name), self._output.get(name)
        return Moments(
            self.count,
            *self._averages,
            None if cross is None else cross / self.count,
            None if output is None else output / self.count,
        )


def weight_of(module: nn.Module) -> Tensor:
    """A module's weight, the parameter itself."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def groups_of(module: nn.Module) -> int:
    """Independent parts of a layer: the groups of a convolution, else 1."""
    return module.groups if isinstance(module, CONVOLUTIONS) else 1


def grouped_weight(module: nn.Module) -> Tensor:
    """The weight as groups x outputs x inputs."""
    matrix = weight_matrix(module)
    return matrix.reshape(groups_of(module), -1, matrix.shape[1])


def as_matrix(module: nn.Module, tensor: Tensor) -> Tensor:
    """A tensor in the weight's own shape (a gradient) as outputs x inputs."""
    return (tensor.transpose(0, 1) if inputs_first(module) else tensor).flatten(1)


def input_rows(module: nn.Module, inputs: Tensor, tokens: Tensor | None) -> Tensor:
    """A module's input as groups x tokens x inputs, without padding.

    Args:
        module: ``nn.Linear``, ``Conv1D`` or a convolution.
        inputs: what the module was called with.
        tokens: batch x length, True for real tokens; None when there is no padding.
    """
    if not isinstance(module, CONVOLUTIONS):
        return _real(inputs, tokens)[None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = nn.functional.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
    if isinstance(module, nn.Conv2d):
        patches = nn.functional.unfold(
            padded, module.kernel_size, dilation=module.dilation, stride=module.stride
        )
    else:
        patches = _unfolded(module, padded)
    return _grouped(patches, module.groups)


def _unfolded(module: nn.Conv1d | nn.Conv3d, padded: Tensor) -> Tensor:
    """The patches of a convolution, batch x (channels * kernel) x positions."""
    ends = len(module.kernel_size)
    for dim in range(ends):
        step = module.dilation[dim]
        reach = step * (module.kernel_size[dim] - 1) + 1
        padded = padded.unfold(2 + dim, reach, module.stride[dim])[..., ::step]
    positions, kernel = range(2, 2 + ends), range(2 + ends, 2 + 2 * ends)
    return padded.permute(0, 1, *kernel, *positions).flatten(1, 1 + ends).flatten(2)


def output_rows(module: nn.Module, outputs: Tensor, tokens: Tensor | None) -> Tensor:
    """A module's output as groups x tokens x outputs, without padding; as `input_rows`."""
    if not isinstance(module, CONVOLUTIONS):
        return _real(outputs, tokens)[None]
    return _grouped(outputs.flatten(2), module.groups)


def _grouped(tensor: Tensor, groups: int) -> Tensor:
    """Batch x channels x pixels -> groups x (batch * pixels) x channels of a group."""
    batch, channels, pixels = tensor.shape
    split = tensor.reshape(batch, groups, channels // groups, pixels)
    return split.permute(1, 0, 3, 2).flatten(1, 2)


def _real(tensor: Tensor, tokens: Tensor | None) -> Tensor:
    if tokens is not None and tensor.shape[:2] == tokens.shape and tensor.dim() == 3:
        # Without padding nothing has to be copied.
        return tensor.flatten(0, 1) if bool(tokens.all()) else tensor[tokens]
    return tensor.flatten(0, -2)


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)
