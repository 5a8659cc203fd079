from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.data.batching import Side, collate, epoch_batches, length_buckets
from seawall.data.templating import IGNORED, Encoded

ROWS = [Encoded([5, 6, 7], [IGNORED, 6, 7]), Encoded([8], [8]), Encoded([9, 10], [IGNORED, 10])]
LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=200)


def test_padding_is_masked_and_unlabelled() -> None:
    batch = collate(ROWS, pad_id=0)
    assert batch.input_ids_BT.tolist() == [[5, 6, 7], [8, 0, 0], [9, 10, 0]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch.labels_BT.tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED], [IGNORED, 10, IGNORED]]
    assert batch.input_ids_BT.dtype == torch.int64


def test_padding_on_the_left_for_generation() -> None:
    batch = collate(ROWS, pad_id=0, side="left")
    assert batch.input_ids_BT.tolist() == [[5, 6, 7], [0, 0, 8], [0, 9, 10]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert batch.labels_BT[1].tolist() == [IGNORED, IGNORED, 8]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_pad_token_that_is_also_the_end_token_is_told_apart_by_the_mask(side: Side) -> None:
    batch = collate([Encoded([5, 2], [5, 2]), Encoded([2], [2])], pad_id=2, side=side)
    assert batch.attention_mask_BT.sum().item() == 3
    assert (batch.labels_BT != IGNORED).sum().item() == 3


@settings(deadline=None)
@given(lengths=LENGTHS, size=st.integers(1, 40))
def test_buckets_hold_every_position_once_longest_first(lengths: list[int], size: int) -> None:
    buckets = length_buckets(lengths, size)
    order = [at for bucket in buckets for at in bucket]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[at] for at in order] == sorted(lengths, reverse=True)
    assert all(len(bucket) == size for bucket in buckets[:-1])


@settings(deadline=None)
@given(lengths=LENGTHS, size=st.integers(1, 40), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_epochs_hold_every_position_once_and_are_fixed_by_seed_and_epoch(
    lengths: list[int], size: int, seed: int, epoch: int
) -> None:
    batches = epoch_batches(lengths, size, seed=seed, epoch=epoch)
    assert sorted(at for batch in batches for at in batch) == list(range(len(lengths)))
    assert max(map(len, batches)) <= size
    assert batches == epoch_batches(lengths, size, seed=seed, epoch=epoch)


def test_epochs_and_seeds_differ_and_like_lengths_are_together() -> None:
    lengths = [1 + (at * 37) % 200 for at in range(256)]
    first = epoch_batches(lengths, 8, seed=0, epoch=0)
    assert first != epoch_batches(lengths, 8, seed=0, epoch=1)
    assert first != epoch_batches(lengths, 8, seed=1, epoch=0)
    assert [len(batch) for batch in first] == [8] * 32

    def padding(batches: list[list[int]]) -> int:
        return sum(max(lengths[at] for at in batch) * len(batch) for batch in batches) - sum(lengths)

    in_order = [list(range(start, start + 8)) for start in range(0, 256, 8)]
    assert padding(first) < 0.3 * padding(in_order)
