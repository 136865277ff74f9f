"""Rectangles of ragged rows, positions and the place that is read: each written out by hand."""

from __future__ import annotations

import pytest
import torch

from rewardserve.model.padding import last_index, left_pad, position_ids

PAD = 7


def test_rows_are_padded_on_the_left_and_the_mask_is_one_at_real_tokens():
    ids_BT, mask_BT = left_pad([(1, 2, 3), (4,), (5, 7)], PAD)
    assert ids_BT.tolist() == [[1, 2, 3], [7, 7, 4], [7, 5, 7]]
    assert mask_BT.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert ids_BT.dtype == mask_BT.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.uint8])
def test_positions_count_real_tokens_and_are_one_under_padding(dtype):
    mask_BT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1]], dtype=dtype)
    positions_BT = position_ids(mask_BT)
    assert positions_BT.tolist() == [[1, 1, 0, 1, 2], [0, 1, 2, 1, 1], [0, 1, 1, 1, 2]]
    assert positions_BT.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.uint8])
def test_the_last_real_token_is_found_whichever_side_is_padded(dtype):
    mask_BT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=dtype)
    assert last_index(mask_BT).tolist() == [4, 2, 0, 4]


def test_positions_and_the_last_token_of_one_row_without_its_batch():
    mask_T = torch.tensor([0, 1, 1, 0])
    assert position_ids(mask_T).tolist() == [1, 0, 1, 1]
    assert last_index(mask_T).item() == 2
