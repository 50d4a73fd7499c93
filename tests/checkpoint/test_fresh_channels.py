"""A process that has never seen them loads convolutional networks without some channels."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from hfcompress.checkpoint.save import record_shapes
from hfcompress.shrinking.channels.graph import trace
from hfcompress.shrinking.channels.surgery import cut
from tests.checkpoint.test_fresh_process import SCRIPT
from tests.fresh_process import run_fresh
from tests.tiny_images import CONVNETS, convnet, convnet_batches


def test_every_family_comes_back(tmp_path: Path) -> None:
    expected = {}
    for network in CONVNETS:
        model, (batch, *_) = convnet(network), convnet_batches(network, 1, 2)
        graph = trace(model, batch)
        # Every group at another width.
        kept = {g.name: torch.arange(1 + i % g.units) for i, g in enumerate(graph.groups)}
        cut(model, graph.groups, kept)
        record_shapes(model)
        model.save_pretrained(tmp_path / network)
        inputs = {"pixel_values": batch["pixel_values"]}
        save_file(inputs, tmp_path / network / "inputs.safetensors")
        with torch.no_grad():
            expected[network] = model(**inputs).logits.double()
    done = run_fresh(SCRIPT, "hfcompress first", *(str(tmp_path / n) for n in CONVNETS))
    for network, found in json.loads(done).items():
        # Another process may add in another order.
        torch.testing.assert_close(
            torch.tensor(found).double(), expected[network], atol=1e-5, rtol=1e-5
        )
