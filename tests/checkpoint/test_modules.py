"""Any module saved as safetensors and shapes, and given back by its class."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from hfcompress import PruningConfig, ShrinkConfig, prune, shrink
from hfcompress.checkpoint.modules import load_module, save_module
from hfcompress.errors import BadInputError, ModelError, OutputError, SourceError
from hfcompress.models.surgery import load_shapes
from tests.plain_networks import CourseStudent, Mlp

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (Mlp, (4, 12)), "cnn": (CourseStudent, (2, 3, 32, 32)),
}  # fmt: skip


class Tied(nn.Module):
    """One weight in two layers, and a buffer of whole numbers."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(9, width), nn.Linear(width, 9, bias=False)
        self.out.weight = self.words.weight
        self.counts: Tensor
        self.register_buffer("counts", torch.arange(9))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.words(x).mean(1))
        return found


class Normed(nn.Module):
    """A norm without parameters: no tensor says its width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 4)
        self.norm = nn.LayerNorm(32, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.norm(self.first(x).relu()))
        return found


def cut(model: nn.Module, *shape: int) -> nn.Module:
    """The module without a part of its channels or neurons."""
    shrink(model, ShrinkConfig(macs=0.6), [torch.rand(8, *shape)])
    return model


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sparse", [False, True])
def test_pruned_and_shrunk_modules_come_back(name: str, sparse: bool, tmp_path: Path) -> None:
    make, shape = NETWORKS[name]
    model = cut(make().eval(), *shape[1:])
    prune(model, PruningConfig(sparsity=0.9))
    saved = save_module(model, tmp_path / "small", sparse)
    again = load_module(tmp_path / "small", make)
    rows = torch.rand(shape)
    with torch.no_grad():
        torch.testing.assert_close(again(rows), model(rows), rtol=0, atol=0)
    assert not again.training
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    dense = sum(4 * t.numel() for t in model.state_dict().values())
    assert (saved.bytes < 0.6 * dense) is sparse
    assert bool(saved.packed) is sparse
    assert {path.suffix for path in saved.path.iterdir()} == {".json", ".md", ".safetensors"}
    twice = save_module(again, tmp_path / "small", sparse)  # what is loaded is saved again
    assert twice.bytes == saved.bytes
    load_module(tmp_path / "small", make)


def test_tied_weights_buffers_and_types_come_back(tmp_path: Path) -> None:
    model = Tied().half().eval()
    model.counts += 3
    save_module(model, tmp_path / "tied")
    again = load_module(tmp_path / "tied", Tied)
    assert isinstance(again, Tied)
    assert again.out.weight is again.words.weight
    assert again.out.weight.dtype == torch.float16
    assert torch.equal(again.counts, model.counts)
    assert torch.equal(again.words.weight, model.words.weight)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (CourseStudent, r"a CourseStudent with none"),
        (lambda: nn.Sequential(Mlp(), nn.Linear(2, 2)), "with first.weight .* with none"),
        (lambda: Wider(), r"first.weight of the shape \[32, 12\] before it was shrunk"),
        (lambda: 3, "returned int"),
        (lambda width: Mlp(), "takes no arguments"),
    ],
)  # fmt: skip
def test_another_module_is_refused(make: Any, words: str, tmp_path: Path) -> None:
    save_module(cut(Mlp(), 12), tmp_path / "small")
    with pytest.raises(ModelError, match=words):
        load_module(tmp_path / "small", make)


class Wider(Mlp):
    """As the saved one, and wider: shrunk shapes would fit into it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 64), nn.Linear(64, 24)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    with pytest.raises(SourceError, match="give a folder of save_module"):
        load_module(folder, Mlp)
    save_module(Mlp(), folder, sparse=True)
    record = (folder / "module.json").read_text()
    for text, words in (
        ("{", "is not what save_module wrote"),
        (json.dumps({**json.loads(record), "format": 9}), "install a newer hfcompress"),
        (json.dumps({**json.loads(record), "shapes": {}}), "belong to different modules"),
    ):
        (folder / "module.json").write_text(text)
        with pytest.raises(ModelError, match=words):
            load_module(folder, Mlp)
    (folder / "module.json").write_text(record)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    with pytest.raises(ModelError, match="differs from what was saved"):
        load_module(folder, Mlp)


def test_what_cannot_be_given_back_is_not_saved(tmp_path: Path) -> None:
    masked = Mlp()
    torch_prune.l1_unstructured(masked.first, "weight", 0.5)  # type: ignore[no-untyped-call]
    normed = cut(Normed(), 8)
    for model, words in (
        (masked, "weight of first is computed from other tensors"),
        (normed, "LayerNorm without parameters"),
    ):
        with pytest.raises(BadInputError, match=words):
            save_module(model, tmp_path / "model")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("hello")
    with pytest.raises(OutputError, match="contains something else"):
        save_module(Mlp(), tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_shrink_that_fails_leaves_no_trace() -> None:
    model = Mlp()
    before = dict(vars(model))
    with pytest.raises(BadInputError):
        shrink(model, ShrinkConfig(macs=1e-9), [torch.rand(8, 12)])
    assert vars(model) == before
    load_shapes(Mlp(), model.state_dict())
