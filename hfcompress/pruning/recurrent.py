"""LSTM, GRU and RNN in single steps, so that hooks see what their matrices are multiplied with.

torch computes the whole of a recurrent layer in one function. Here each matrix is a module that is
called: the one for the inputs once for all steps, the one for the hidden states at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Parts = Mapping[str, Callable[[Tensor], Tensor]]
"""``weight_ih_l0`` and the like -> its product with inputs, bias included."""
State = tuple[Tensor, ...]
"""The hidden state, and the cell state of an LSTM, [rows, size] each."""


def can_step(module: nn.Module) -> bool:
    """Whether `call_in_steps` computes what a recurrent module computes."""
    if isinstance(module, nn.RNNCellBase):
        return True
    return isinstance(module, nn.RNNBase) and not module.proj_size


def call_in_steps(
    module: nn.RNNBase,
    parts: Parts,
    inputs: Tensor | PackedSequence,
    hx: Tensor | State | None = None,
) -> tuple[Tensor | PackedSequence, Tensor | State]:
    """As the module's forward in eval mode, by rounding: dropout between layers is left out.

    Args:
        module: an LSTM, a GRU or an RNN without projections.
        parts: a product for each of its matrices.
        inputs: as the module takes them; [length, inputs] is one row.
        hx: the first state, as the module takes it.
    """
    data, sizes, unbatched = _flat(module, inputs)
    first: State = _first_state(module, inputs, hx, sizes[0], data, unbatched)
    ways = 2 if module.bidirectional else 1
    last: list[State] = []
    for layer in range(module.num_layers):
        outputs = []
        for way in range(ways):
            suffix = f"l{layer}{'_reverse' * way}"
            begin = tuple(part[len(last)] for part in first)
            output, end = _one_way(module, parts, suffix, data, sizes, begin, bool(way))
            outputs.append(output)
            last.append(end)
        data = torch.cat(outputs, -1)
    stacked = tuple(torch.stack(part) for part in zip(*last, strict=True))
    return _as_given(module, inputs, data, sizes, stacked, unbatched)


def call_cell(
    module: nn.RNNCellBase, parts: Parts, inputs: Tensor, hx: Tensor | State | None = None
) -> Tensor | State:
    """As a cell's forward; arguments as there."""
    row = inputs.dim() == 1
    inputs = inputs[None] if row else inputs
    zero = inputs.new_zeros(len(inputs), module.hidden_size)
    given = (hx,) if isinstance(hx, Tensor) else hx
    long = isinstance(module, nn.LSTMCell)
    state: State = (zero, zero) if long else (zero,)
    if given is not None:
        state = tuple(part[None] if row else part for part in given)
    gates = parts["weight_ih"](inputs), parts["weight_hh"](state[0])
    found = tuple(part[0] if row else part for part in _step(module, *gates, state))
    return found if long else found[0]


# --- steps -------------------------------------------------------------------------------------


def _one_way(
    module: nn.RNNBase,
    parts: Parts,
    suffix: str,
    data: Tensor,
    sizes: Sequence[int],
    state: State,
    reverse: bool,
) -> tuple[Tensor, State]:
    """All steps of one layer in one direction: outputs as ``data``, and the last state."""
    gates = parts[f"weight_ih_{suffix}"](data).split(list(sizes))  # type: ignore[no-untyped-call]
    hidden = parts[f"weight_hh_{suffix}"]
    outputs: dict[int, Tensor] = {}
    order = range(len(sizes))
    for place in reversed(order) if reverse else order:
        rows = sizes[place]
        now = tuple(part[:rows] for part in state)
        new = _step(module, gates[place], hidden(now[0]), now)
        outputs[place] = new[0]
        state = tuple(
            torch.cat([fresh, part[rows:]]) for fresh, part in zip(new, state, strict=True)
        )
    return torch.cat([outputs[place] for place in order]), state


def _step(module: nn.Module, inputs: Tensor, hidden: Tensor, state: State) -> State:
    """The next state, from the products of inputs and hidden state."""
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        into, forget, cell, out = (inputs + hidden).chunk(4, -1)
        long = forget.sigmoid() * state[1] + into.sigmoid() * cell.tanh()
        return out.sigmoid() * long.tanh(), long
    if isinstance(module, (nn.GRU, nn.GRUCell)):
        (reset, update, new), (resets, updates, news) = inputs.chunk(3, -1), hidden.chunk(3, -1)
        fresh = (new + (reset + resets).sigmoid() * news).tanh()
        kept = (update + updates).sigmoid()
        return ((1 - kept) * fresh + kept * state[0],)
    found = inputs + hidden
    return (found.relu() if getattr(module, "nonlinearity", "tanh") == "relu" else found.tanh(),)


# --- what the module is given and gives ----------------------------------------------------------


def _flat(module: nn.RNNBase, inputs: Tensor | PackedSequence) -> tuple[Tensor, list[int], bool]:
    """The rows of each step after one another, and how many each step has."""
    if isinstance(inputs, PackedSequence):
        return inputs.data, inputs.batch_sizes.tolist(), False
    unbatched = inputs.dim() == 2
    if unbatched:
        inputs = inputs[:, None]
    elif module.batch_first:
        inputs = inputs.transpose(0, 1)
    return inputs.flatten(0, 1), [inputs.shape[1]] * inputs.shape[0], unbatched


def _first_state(
    module: nn.RNNBase,
    inputs: Tensor | PackedSequence,
    hx: Tensor | State | None,
    rows: int,
    data: Tensor,
    unbatched: bool,
) -> State:
    """The first state of each layer and direction, [layers * directions, rows, size] each."""
    if hx is None:
        ways = module.num_layers * (2 if module.bidirectional else 1)
        zero = data.new_zeros(ways, rows, module.hidden_size)
        return (zero, zero) if isinstance(module, nn.LSTM) else (zero,)
    given = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    if unbatched:
        given = tuple(part[:, None] for part in given)
    if isinstance(inputs, PackedSequence) and inputs.sorted_indices is not None:
        order = inputs.sorted_indices
        given = tuple(part.index_select(1, order) for part in given)
    return given


def _as_given(
    module: nn.RNNBase,
    inputs: Tensor | PackedSequence,
    data: Tensor,
    sizes: Sequence[int],
    state: State,
    unbatched: bool,
) -> tuple[Tensor | PackedSequence, Tensor | State]:
    """Outputs and last state in the form that the module gives them."""
    output: Tensor | PackedSequence
    if isinstance(inputs, PackedSequence):
        output = PackedSequence(
            data, inputs.batch_sizes, inputs.sorted_indices, inputs.unsorted_indices
        )
        if inputs.unsorted_indices is not None:
            order = inputs.unsorted_indices
            state = tuple(part.index_select(1, order) for part in state)
    else:
        steps = data.view(len(sizes), sizes[0], -1)
        if unbatched:
            steps, state = steps[:, 0], tuple(part[:, 0] for part in state)
        output = steps.transpose(0, 1) if module.batch_first and not unbatched else steps
    return output, state if isinstance(module, nn.LSTM) else state[0]
