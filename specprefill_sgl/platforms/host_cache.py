"""HiCache where there is no accelerator: its host memory is plain memory, and KV goes there and back by indexed copies.

That is what `--hicache-io-backend direct --hicache-mem-layout layer_first` asks for. The other ways need compiled kernels.
"""

from collections.abc import Sequence

import torch
from sglang.srt.mem_cache.pool_host import base, mamba, mha, mla


def transfer_kv_direct(
    src_layers: Sequence[torch.Tensor],
    dst_layers: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """Copy the slots `src_indices` of each tensor [slots, ...] to the slots `dst_indices` of its counterpart."""
    for source, to in zip(src_layers, dst_layers, strict=True):
        to[dst_indices] = source[src_indices].to(to.dtype)


def register() -> None:
    """Let SGLang's host pools of this process copy so, which import no transfers on such platforms, and pin nothing.

    They would leave 10 GiB of host memory to others; here that is where the models and the KV are already.
    """
    for pool in (mha, mla, mamba):
        pool.transfer_kv_direct = transfer_kv_direct
    base.HostKVCache.pin_memory = property(lambda _: False, lambda *_: None)
    base.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0
