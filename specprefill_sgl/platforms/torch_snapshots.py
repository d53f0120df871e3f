"""Copies of recurrent states in torch, for SGLang's Triton kernels of the same names.

Under `--mamba-radix-cache-strategy extra_buffer` a state is copied to a slot of its own while the request goes on from it, so
that the radix cache can later resume there. Prefills write theirs from what the layers return; these are the decodes'.
"""

import torch

from specprefill_sgl.platforms.replacement import replace


def track_mamba_states_if_needed(
    conv_states: torch.Tensor,
    ssm_states: torch.Tensor,
    cache_indices: torch.Tensor,
    mamba_track_mask: torch.Tensor,
    mamba_track_indices: torch.Tensor,
    batch_size: int,
    check_freed_slots: bool = False,
) -> None:
    """One layer's states, [slots, ...]: of each masked request from its slot to its tracking slot; no slot where it is -1."""
    track_mamba_states_all_layers(
        conv_states[None],
        ssm_states[None],
        cache_indices,
        mamba_track_mask,
        mamba_track_indices,
        batch_size,
        check_freed_slots,
    )


def track_mamba_states_all_layers(
    conv_states_pool: torch.Tensor,
    ssm_states_pool: torch.Tensor,
    cache_indices: torch.Tensor,
    mamba_track_mask: torch.Tensor,
    mamba_track_indices: torch.Tensor,
    batch_size: int,
    check_freed_slots: bool = False,
) -> None:
    """The same for all layers, [layers, slots, ...]. The first `batch_size` rows of mask and slots are requests."""
    source, to = cache_indices[:batch_size].long(), mamba_track_indices[:batch_size].long()
    rows = mamba_track_mask[:batch_size]
    if check_freed_slots:
        rows = rows & (source >= 0) & (to >= 0)
    for pool in (conv_states_pool, ssm_states_pool):
        pool[:, to[rows]] = pool[:, source[rows]]


def register() -> None:
    """Copy with these in this process."""
    replace(
        "sglang.kernels.ops.mamba.mamba_state_scatter_triton",
        track_mamba_states_if_needed=track_mamba_states_if_needed,
        track_mamba_states_all_layers=track_mamba_states_all_layers,
    )
