"""Copies of recurrent states: which slots are written, and what they hold."""

import pytest
import torch

from specprefill_sgl.platforms import torch_snapshots as ours

LAYERS, SLOTS = 3, 6


@pytest.mark.parametrize("all_layers", [True, False])
def test_masked_requests_are_copied_from_their_slot_to_their_tracking_slot(all_layers):
    """Three requests of a buffer of five rows: the second is not due, the rest of the rows are of an earlier batch."""
    pools = [torch.randn(LAYERS, SLOTS, 2, 3), torch.randn(LAYERS, SLOTS, 4)]
    before = [pool.clone() for pool in pools]
    slots = torch.tensor([5, 1, 0, 1, 1], dtype=torch.int32)
    tracking = torch.tensor([2, 3, 4, 5, 5])
    due = torch.tensor([True, False, True, True, True])
    if all_layers:
        ours.track_mamba_states_all_layers(*pools, slots, due, tracking, 3)
    else:
        for conv, ssm in zip(*pools, strict=True):
            ours.track_mamba_states_if_needed(conv, ssm, slots, due, tracking, 3)
    for pool, old in zip(pools, before, strict=True):
        assert (pool == old[:, [0, 1, 5, 3, 0, 5]]).all()


def test_freed_slots_are_left_out():
    """-1 would otherwise be the last slot."""
    pools = [torch.randn(LAYERS, SLOTS, 2, 3), torch.randn(LAYERS, SLOTS, 4)]
    before = [pool.clone() for pool in pools]
    slots, tracking = torch.tensor([-1, 1, 2]), torch.tensor([0, -1, 3])
    ours.track_mamba_states_all_layers(*pools, slots, torch.ones(3, dtype=torch.bool), tracking, 3, check_freed_slots=True)
    for pool, old in zip(pools, before, strict=True):
        assert (pool == old[:, [0, 1, 2, 2, 4, 5]]).all()
