"""The Python examples of docs/ run, page by page, on tiny models and data."""

from __future__ import annotations

import ast
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hfcompress
from benchmarks.tables import ROOT
from hfcompress import QuantizationConfig
from hfcompress.config import Config
from hfcompress.errors import HfcompressError
from hfcompress.models.cross_encoder import AutoCrossEncoder
from tests.forked import fork_workers
from tests.plain_networks import NETWORKS, CourseStudent
from tests.tasks.asked import save_reader
from tests.tasks.masked import save_backbone
from tests.tasks.ranked import reranker_folder
from tests.tasks.segmented import pictures, save_segformer
from tests.test_readme import blocks_of, read
from tests.tiny_embeddings import embedding_folder
from tests.tiny_images import convnet, image_batches
from tests.tiny_models import tiny_bert
from tests.tiny_tokenizers import FILLER, GOOD, tiny_tokenizer

PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "```python\n" in read(page)]


def takes_long(page: Path, text: str) -> bool:
    """A search, or an export of deployment.md: tests/search and tests/quantization run them. Phone
    engines need an environment of their own."""
    return "CompressTarget" in text or page.stem == "deployment"


@pytest.fixture
def names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_data: Callable[..., Path]
) -> dict[str, Any]:
    """What the examples take for granted: files in the current folder, and objects."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    made = tiny_bert(), tiny_bert(num_hidden_layers=6, hidden_size=256, intermediate_size=1024)
    for folder, each in zip(("FOLDER", "small", "teacher"), (made[0], *made), strict=True):
        each.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    model, teacher = (type(made[0]).from_pretrained(name) for name in ("FOLDER", "teacher"))
    write_data("sst2/train.tsv", rows=64)
    write_data("sst2/dev.tsv", rows=24, seed=1)
    write_data("sst2/test.tsv", rows=24, seed=2)
    AutoCrossEncoder.from_pretrained(reranker_folder(Path("reranker"))).save_pretrained("reranker")
    embedding_folder(Path("embedder"))
    save_reader(Path("reader"))
    save_backbone(Path("backbone"))
    save_segformer(Path("segmenter"))
    pictures(1)[0][0].save("photo.jpg")
    words = [*GOOD, *FILLER]
    texts = [f"{words[i % 15]} {words[i % 7]} {words[i % 4]}" for i in range(32)]
    batches = [dict(tokenizer(texts[i : i + 8], padding=True, return_tensors="pt")) for i in (0, 8)]
    for batch in batches:
        batch["labels"] = torch.arange(8) % 2
    recipe = "model: FOLDER\ndata: sst2/\nsteps: [prune: {sparsity: 0.5}]\n"
    Path("recipe.yaml").write_text(recipe)
    return {
        "model": model, "teacher": teacher, "student": tiny_bert(),
        "tokenizer": tokenizer, "texts": texts, "batches": batches, "rows": rows_of(batches),
        "resnet": convnet("resnet"), "cnn": convnet("resnet"), "images": torch.randn(8, 3, 32, 32),
        "passages": ["a good plot", "dull music"],
        "Trainer": lambda *_, **__: None, "Network": Network, "network": Network(),
    }  # fmt: skip


def rows_of(batches: list[dict[str, torch.Tensor]]) -> list[dict[str, Any]]:
    return [
        {name: values[row].tolist() for name, values in batch.items()}
        for batch in batches
        for row in range(8)
    ]


def modules() -> dict[str, Any]:
    """Networks with the layers that modules.md names, and a loader."""
    teacher, student = NETWORKS["course teacher"], NETWORKS["course student"]
    model = teacher.model()
    shutil.rmtree("small")  # another page's
    return {
        "model": model, "student": student.model(), "Network": CourseStudent,
        "loader": student.loader(8, 4), "optimizer": torch.optim.SGD(model.parameters(), lr=1e-3),
    }  # fmt: skip


class Network(torch.nn.Module):
    """A network of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 16, 3), torch.nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.first(x).relu().mean((2, 3)))
        return out


@pytest.mark.usefixtures("names", "shared_exports")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_from_top_to_bottom(
    page: Path, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    fork_workers(monkeypatch)
    if page.stem == "images":
        names["batches"] = image_batches()
    if page.stem == "modules":
        names |= modules()
    for text in blocks_of(page, "python"):
        if not takes_long(page, text):
            exec(compile(text, str(page), "exec"), names)


def check_names(text: str, names: dict[str, Any]) -> None:
    """Check what an example uses without running it: imports are made, as are configs and targets;
    calls are bound to signatures, and attributes looked up on the classes that functions return.
    """
    tree = ast.parse(text)
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            exec(ast.unparse(node), names)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            function = names[ast.unparse(node.value.func)]
            returned = eval(function.__annotations__["return"], function.__globals__)
            names |= {ast.unparse(target): returned for target in node.targets}
    for part in ast.walk(tree):
        if isinstance(part, ast.Call):
            check_call(part, names)
        elif isinstance(part, ast.Attribute):
            owner = names.get(ast.unparse(part.value))
            if isinstance(owner, type):
                assert hasattr(owner, part.attr) or part.attr in owner.__annotations__


def check_call(call: ast.Call, names: dict[str, Any]) -> None:
    """Bind the arguments of a call whose function is known; make a config."""
    try:
        function = eval(ast.unparse(call.func), {**names})
    except Exception:  # on what another call returns
        return
    if function is print:
        return
    keywords = {str(keyword.arg): None for keyword in call.keywords}
    placed: list[ast.expr | None] = list(call.args)
    if "." in ast.unparse(call.func):
        placed = [None, *placed]  # self
    inspect.signature(function).bind(*placed, **keywords)
    if isinstance(function, type) and issubclass(function, Config):
        eval(ast.unparse(call), names)


KNOWN: dict[str, Any] = {
    "quantize": hfcompress.quantize, "load": hfcompress.load,
    "QuantizationConfig": QuantizationConfig, "print": print,
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_the_long_examples_call_exists(page: Path) -> None:
    for text in blocks_of(page, "python"):
        if takes_long(page, text):
            check_names(text, dict(KNOWN))


@pytest.mark.parametrize(
    "text",
    [
        "from hfcompress import nothing",
        "from hfcompress import compress\ncompress('model', datum='x')",
        "small = quantize(model, QuantizationConfig())\nsmall.store('folder')",
        "small = quantize(model, QuantizationConfig())\nsmall.save('folder', 1, 2, 3)",
        "small = quantize(model, QuantizationConfig(backend='litert', mode='qat8'))",
        "small = quantize(model, QuantizationConfig())\nprint(small.coverages)",
    ],
)
def test_what_does_not_exist_is_found(text: str) -> None:
    with pytest.raises((ImportError, TypeError, AssertionError, HfcompressError)):
        check_names(text, dict(KNOWN))
