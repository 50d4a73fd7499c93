"""N:M and block patterns hold exactly, also where a dimension is no multiple."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfcompress.pruning.patterns import Pattern, block_masks, n_of_m_mask, row_mask

SHAPES = {"rows": st.integers(1, 30), "columns": st.integers(1, 40), "seed": st.integers(0, 99)}


def random_scores(rows: int, columns: int, seed: int) -> torch.Tensor:
    values = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    return (values * 8).round() if seed % 3 == 0 else values  # every third with many ties


@settings(deadline=None, max_examples=80)
@given(**SHAPES, group=st.integers(2, 9), data=st.data())
def test_n_of_m(rows: int, columns: int, seed: int, group: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, group - 1))
    scores = random_scores(rows, columns, seed)
    mask = n_of_m_mask(scores, keep, group)
    for start in range(0, columns, group):
        part, score = mask[:, start : start + group], scores[:, start : start + group]
        width = part.shape[1]
        kept = keep if width == group else -(-width * keep // group)
        assert part.sum(1).tolist() == [kept] * rows
        lowest_kept = score.masked_fill(~part, 99).min(1).values
        highest_dropped = score.masked_fill(part, -1).max(1).values
        assert bool((highest_dropped <= lowest_kept).all())
    dropped = Pattern(keep=keep, group=group).dropped(rows, columns, 0.0)
    assert int((~mask).sum()) == dropped


@settings(deadline=None, max_examples=80)
@given(**SHAPES, high=st.integers(1, 5), wide=st.integers(1, 5), share=st.floats(0, 1))
def test_blocks(rows: int, columns: int, seed: int, high: int, wide: int, share: float) -> None:
    scores = random_scores(rows, columns, seed)
    drop = round(share * rows * columns)
    mask = block_masks([scores], drop, high, wide)[0]
    for top in range(0, rows, high):
        for left in range(0, columns, wide):
            block = mask[top : top + high, left : left + wide]
            assert bool(block.all()) or not bool(block.any())
    assert abs(int((~mask).sum()) - drop) <= high * wide / 2


@settings(deadline=None, max_examples=60)
@given(**SHAPES, share=st.floats(0, 1))
def test_rows_lose_equally(rows: int, columns: int, seed: int, share: float) -> None:
    scores = random_scores(rows, columns, seed)
    drop = round(share * rows * columns)
    mask = row_mask(scores, drop)
    per_row = (~mask).sum(1)
    assert int(per_row.sum()) == drop
    assert int(per_row.max() - per_row.min()) <= 1
    for score, keep in zip(scores, mask, strict=True):
        if 0 < int(keep.sum()) < columns:
            assert float(score[~keep].max()) <= float(score[keep].min())


def test_blocks_of_several_layers_share_one_threshold() -> None:
    small, large = torch.full((4, 4), 1.0), torch.full((4, 4), 2.0)
    masks = block_masks([large, small], 16, 2, 2)
    assert bool(masks[0].all())
    assert not bool(masks[1].any())


@pytest.mark.parametrize("text", ["2:4", "1:2", "4:8", "4x1", "1x4", "16x1", "32x32"])
def test_patterns_are_read(text: str) -> None:
    pattern = Pattern.parse(text)
    numbers = [int(number) for number in text.replace("x", ":").split(":")]
    expected = (pattern.keep, pattern.group) if ":" in text else (pattern.rows, pattern.columns)
    assert list(expected) == numbers


@pytest.mark.parametrize("text", ["4:4", "0:4", "5:4", "2-4", "0x4", "block", ""])
def test_other_patterns_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="N:M"):
        Pattern.parse(text)
