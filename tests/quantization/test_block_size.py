"""``block_size``: what it may be combined with."""

from __future__ import annotations

from typing import Any

import pytest

from hfcompress.errors import ConfigError
from hfcompress.quantization.config import QuantizationConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backend": "torch"}, "block_size is an option of onnxruntime, not of torch"),
        ({"mode": "static"}, "block_size needs mode: dynamic"),
        ({"per_token": True}, "block_size has scales of its own; leave per_token out"),
        ({"reduce_range": True}, "leave reduce_range out"),
        ({"per_channel": False}, "leave per_channel: false out"),
        ({"block_size": 48}, "block_size"),
    ],
)
def test_refuses_what_does_not_fit_blocks(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantizationConfig.from_dict({"block_size": 128, **fields})


def test_hashes_of_old_configs_do_not_know_it() -> None:
    assert QuantizationConfig(per_token=True).non_default_fields() == {"per_token": True}
