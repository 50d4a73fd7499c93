"""Which kinds of networks `shrink` and `prune` work on: some ninety small plain ones.

    python -m benchmarks.network_matrix --json FILE --page docs/networks.md

Each network is shrunk to 70 % of its multiply-accumulates by magnitude, without repair. It is right
when all of its outputs, in eval and in train mode, equal those of the dense network whose missing
channels are masked: that network is made here from the values of the weights that are left alone,
without anything that the library says. What is left must also be what `count_macs` counts. A
refusal is one sentence that leaves the network as it was. Beside it: the default settings, which
repair (all outputs finite and of the same shapes), `prune`, safetensors of the shrunk network read
back into a network of the full size by `load_shapes`, and Torch-Pruning on the same network.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_model
from torch import Tensor, nn
from torch.nn import functional as F

import benchmarks._networks_of_attention
import benchmarks._networks_of_convolutions
import benchmarks._networks_of_parts
import benchmarks._networks_of_sequences  # noqa: F401  # each adds its networks
from benchmarks._figures import Figure, parse_arguments, report
from benchmarks._networks import NETWORKS, Network
from hfcompress.calibration.batches import Calibration
from hfcompress.errors import HfcompressError
from hfcompress.measure.macs import count_macs
from hfcompress.models.surgery import load_shapes
from hfcompress.pruning.config import PruningConfig
from hfcompress.pruning.prune import prune
from hfcompress.shrinking.config import ShrinkConfig
from hfcompress.shrinking.shrink import shrink
from hfcompress.utils import atomic_write

SHARE = 0.7
RIGHT, REFUSED, WRONG = "right", "refused", "wrong"
PLAIN = ShrinkConfig(macs=SHARE, score="magnitude", repair="none", allocation="uniform")


@dataclass(frozen=True)
class Outcome:
    """What became of one network.

    Attributes:
        network: its name.
        shrink: right, refused or wrong by magnitude without repair.
        left: share of the multiply-accumulates that is left.
        why: how it is wrong, or the refusal.
        default: right, refused or wrong with the default settings, which repair.
        prune: right, refused or wrong at half of the weights.
        reload: whether the saved network gives the same outputs.
        torch_pruning: right, refused or wrong by Torch-Pruning.
    """

    network: str
    shrink: str
    left: float
    why: str
    default: str
    prune: str
    reload: str
    torch_pruning: str


def made(network: Network, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network whose weights are all different, and rows for it."""
    torch.manual_seed(seed)
    model, rows = network.build(), network.inputs()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.dim():
                steps = torch.randperm(tensor.numel()) / tensor.numel()  # no value comes twice
                if tensor.dim() > 1:
                    fan = tensor[0].numel()
                    tensor.copy_((steps.view_as(tensor) - 0.5) * 5 / fan**0.5)
                else:
                    tensor.copy_(steps + 0.5)
    return model.eval(), rows


def outputs(model: nn.Module, rows: Tensor, training: bool = False) -> list[Tensor]:
    """All tensors that a network returns; dropout is left out."""
    model.train(training)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        result = model(rows)
    found = result.values() if isinstance(result, dict) else result
    return [result] if isinstance(result, Tensor) else list(found)


def alike(found: list[Tensor], wanted: list[Tensor]) -> bool:
    """Whether outputs have the same shapes and values."""
    return [t.shape for t in found] == [t.shape for t in wanted] and all(
        torch.allclose(a, b, rtol=0, atol=1e-3 * float(b.abs().max()) + 1e-6)
        for a, b in zip(found, wanted, strict=True)
    )


Kept = dict[str, list[Tensor]]
"""For each tensor and each of its dimensions the places that are left."""


def kept_places(dense: nn.Module, small: nn.Module) -> Kept:
    """Where the values that are left were before; all values of a tensor differ.

    Raises:
        ValueError: a tensor holds something else than a block of the dense one.
    """
    found: Kept = {}
    after = small.state_dict()
    for name, before in dense.state_dict().items():
        if not before.is_floating_point() or not before.dim():
            continue
        order = before.flatten().argsort()
        values = before.flatten()[order]
        at = order[
            torch.searchsorted(values, after[name].flatten().contiguous()).clamp_max(
                len(values) - 1
            )
        ]
        places = [
            torch.tensor(sorted(set(index.tolist())))
            for index in torch.unravel_index(at, before.shape)
        ]
        block = before[torch.meshgrid(*places, indexing="ij")]
        if block.shape != after[name].shape or not torch.equal(block, after[name]):
            raise ValueError(f"{name} is not a part of the dense one")
        found[name] = places
    return found


def _is_read(module: nn.Module, name: str, dimension: int) -> bool:
    """Whether a dimension of a weight is summed over."""
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        return dimension == 0 and name == "weight"
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return dimension == 1
    return dimension == 1 and not isinstance(module, nn.Embedding)


@contextmanager
def masked(dense: nn.Module, kept: Kept) -> Iterator[nn.Module]:
    """A copy of the dense network in which nothing reads the channels that are gone."""
    model = copy.deepcopy(dense)
    before: Tensor | None = None  # what is left of the outputs of the last layer
    with ExitStack() as stack, torch.no_grad():
        for path, module in model.named_modules():
            own = {**module._parameters, **module._buffers}
            for name, tensor in own.items():
                places = kept.get(f"{path}.{name}" if path else name)
                if tensor is None or places is None or tensor.dim() < 2:
                    continue
                for dimension, left in enumerate(places):
                    if len(left) < tensor.shape[dimension] and _is_read(module, name, dimension):
                        gone = torch.ones(tensor.shape[dimension], dtype=torch.bool)
                        gone[left] = False
                        tensor.index_fill_(dimension, gone.nonzero()[:, 0], 0)
            places = kept.get(f"{path}.weight")
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
                features = before if places is None else places[0]
                hook = partial(_norm_of_kept, features)
                stack.callback(module.register_forward_hook(hook).remove)
            elif places is not None and isinstance(module, (nn.Linear, nn.Conv2d)):
                before = places[0]
        yield model


def _norm_of_kept(
    left: Tensor | None, norm: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    dimension = 1 if isinstance(norm, nn.GroupNorm) else output.dim() - 1
    many = isinstance(norm, nn.LayerNorm) and len(norm.normalized_shape) > 1
    if left is None or many or output.shape[dimension] <= len(left):
        return output
    inputs = args[0].index_select(dimension, left)
    weight, bias = (
        None if (value := getattr(norm, name, None)) is None else value[left]
        for name in ("weight", "bias")
    )
    if isinstance(norm, nn.GroupNorm):
        found = F.group_norm(inputs, norm.num_groups, weight, bias, norm.eps)
    elif isinstance(norm, nn.LayerNorm):
        found = F.layer_norm(inputs, (len(left),), weight, bias, norm.eps)
    else:
        assert isinstance(norm, nn.RMSNorm)
        found = F.rms_norm(inputs, (len(left),), weight, norm.eps)
    return torch.zeros_like(output).index_copy(dimension, left, found)


def fault(dense: nn.Module, small: nn.Module, rows: Tensor) -> str:
    """How a smaller network differs from the masked dense one; "" where it does not."""
    if sum(p.numel() for p in small.parameters()) >= sum(p.numel() for p in dense.parameters()):
        return "nothing was removed"
    try:
        with masked(dense, kept_places(dense, small)) as model:
            for training in (False, True):
                wanted = outputs(copy.deepcopy(model), rows, training)
                found = outputs(copy.deepcopy(small), rows, training)
                if not alike(found, wanted):
                    return f"other outputs in {'train' if training else 'eval'} mode"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    return ""


def attempt(model: nn.Module, rows: Tensor, call: Callable[[nn.Module], str]) -> tuple[str, str]:
    """Right, refused or wrong, and why; a refused network must be as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        why = call(model)
    except HfcompressError as error:
        after = model.state_dict()
        whole = all(torch.equal(value, after[name]) for name, value in before.items())
        return (REFUSED if whole else WRONG), str(error)
    except Exception as error:
        return WRONG, f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    return (WRONG if why else RIGHT), why


def examine(name: str, peers: bool = True) -> Outcome:
    """Try everything on one network.

    Args:
        name: of `NETWORKS`.
        peers: Torch-Pruning, too.
    """
    network = NETWORKS[name]
    dense, rows = made(network)
    data = Calibration([{"x": rows, "labels": torch.arange(len(rows)) % 3}])
    small = copy.deepcopy(dense)
    left = 1.0

    def shrunk(model: nn.Module) -> str:
        nonlocal left
        report = shrink(model, PLAIN, data)
        inputs = {next(iter(inspect.signature(model.forward).parameters)): rows[:1]}
        counted = [count_macs(one, inputs).total for one in (dense, model)]
        left = counted[1] / counted[0]
        if abs(report.macs.share - left) > 1e-6 or left > SHARE * (1 + 1e-6):
            return f"{report.macs.share:.3f} reported and {left:.3f} counted"
        return fault(dense, model, rows)

    def default(model: nn.Module) -> str:
        shrink(model, ShrinkConfig(macs=SHARE), data)
        found, wanted = outputs(model, rows), outputs(copy.deepcopy(dense), rows)
        alike_in_shape = [t.shape for t in found] == [t.shape for t in wanted]
        return (
            ""
            if alike_in_shape and all(bool(t.isfinite().all()) for t in found)
            else "other shapes"
        )

    def pruned(model: nn.Module) -> str:
        report = prune(model, PruningConfig(sparsity=0.5))
        outputs(model, rows)
        zeros = sum(int((p == 0).sum()) for p in model.parameters())
        share = sum(p.zeros for p in report.layers) / sum(p.weights for p in report.layers)
        return "" if zeros and share >= 0.49 else "no zeros"

    verdict, why = attempt(small, rows, shrunk)
    return Outcome(
        name,
        verdict,
        left,
        why,
        attempt(copy.deepcopy(dense), rows, default)[0],
        attempt(copy.deepcopy(dense), rows, pruned)[0],
        reloaded(network, small, rows) if verdict == RIGHT else "",
        by_torch_pruning(dense, rows) if peers else "",
    )


def reloaded(network: Network, small: nn.Module, rows: Tensor) -> str:
    """Whether a network of the full size takes the shapes and values of a saved smaller one."""
    with TemporaryDirectory() as folder:
        save_model(small, f"{folder}/model.safetensors")
        again = network.build().eval()
        try:
            load_shapes(again, load_file(f"{folder}/model.safetensors"))
        except HfcompressError:
            return REFUSED
    found, wanted = (outputs(model, rows) for model in (again, copy.deepcopy(small)))
    return RIGHT if alike(found, wanted) else WRONG


def by_torch_pruning(dense: nn.Module, rows: Tensor) -> str:
    """What Torch-Pruning makes of a network: three of ten channels go, by their group norm."""
    import torch_pruning

    model = copy.deepcopy(dense)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = torch_pruning.pruner.MetaPruner(
                model, rows, torch_pruning.importance.GroupMagnitudeImportance(), pruning_ratio=0.3,
                ignored_layers=output_layers(model, rows),
            )  # fmt: skip
            pruner.step()
    except Exception:
        return REFUSED
    return WRONG if fault(dense, model, rows) else RIGHT


COLUMNS = (
    "network",
    "shrink",
    "left",
    "default settings",
    "prune",
    "reload",
    "Torch-Pruning",
    "why",
)


_WIDE = (34, 8, 5, 8, 8, 8, 8, 1)


def cells(one: Outcome) -> list[str]:
    """A row of the table."""
    name, left = one.network.replace("_", " "), f"{one.left:.2f}"
    verdicts = [one.default, one.prune, one.reload, one.torch_pruning]
    return [name, one.shrink, left, *verdicts, one.why]


def output_layers(model: nn.Module, rows: Tensor) -> list[nn.Module]:
    """The layers whose outputs are the network's own, in eval or in train mode."""
    made: dict[int, tuple[str, Tensor]] = {}

    def note(name: str, layer: nn.Module, _: object, output: Tensor) -> None:
        made[id(output)] = name, output

    work = copy.deepcopy(model)  # train mode moves the statistics of batch norms
    for name, layer in work.named_modules():
        if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
            layer.register_forward_hook(partial(note, name))
    found = [outputs(work, rows, training) for training in (True, False)]
    names = [made[id(part)][0] for parts in found for part in parts if id(part) in made]
    return [model.get_submodule(name) for name in names]


def page(found: list[Outcome]) -> str:
    """The table as Markdown."""
    counts = {v: sum(one.shrink == v for one in found) for v in (RIGHT, REFUSED, WRONG)}
    peers = {v: sum(one.torch_pruning == v for one in found) for v in (RIGHT, REFUSED, WRONG)}
    about = __doc__ or ""
    lines = [
        "# Networks",
        "",
        *about.split("\n\n")[2].splitlines(),
        "",
        f"Of {len(found)} networks, `shrink` gets {counts[RIGHT]} right, refuses {counts[REFUSED]} "
        f"and gets {counts[WRONG]} wrong. Torch-Pruning (three of ten channels by its group norm, "
        "its defaults, the layers that make the outputs ignored, no word on heads) gets "
        f"{peers[RIGHT]} right, fails with {peers[REFUSED]} and gets {peers[WRONG]} wrong.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
        *("| " + " | ".join(cells(one)) + " |" for one in found),
    ]
    return "\n".join([*lines, ""])


def figures(found: list[Outcome]) -> list[Figure]:
    """How many networks of all came out right, and how many wrong."""
    columns = {
        "shrink, equal to the masked network": ("shrink", f">= {0.9 * len(found):.0f}"),
        "shrink with its default settings": ("default", f">= {0.9 * len(found):.0f}"),
        "prune": ("prune", None),
        "reload by load_shapes": ("reload", None),
        "Torch-Pruning, equal to the masked network": ("torch_pruning", None),
    }
    made = []
    for name, (field, target) in columns.items():
        verdicts = [getattr(one, field) for one in found]
        made.append(Figure(f"{name}: right", verdicts.count(RIGHT), "networks", target=target))
        least = "<= 0" if field in ("shrink", "default") else None
        made.append(Figure(f"{name}: wrong", verdicts.count(WRONG), "networks", target=least))
    return made


def main() -> None:
    """Print a line for each network, and write figures and page."""
    chosen = parse_arguments(__doc__, only="names of networks, with commas", page="table of all")
    found = []
    for name in chosen.only.split(",") if chosen.only else NETWORKS:
        found.append(examine(name))
        row = zip(cells(found[-1]), _WIDE, strict=True)
        print(" ".join(f"{cell:{width}}" for cell, width in row), flush=True)
    report(figures(found), "network_matrix", chosen.json)
    if chosen.page:
        atomic_write(chosen.page, page(found))


if __name__ == "__main__":
    main()
