"""HiCache's host pools where there is no accelerator."""

import pytest
import torch
from sglang.srt.mem_cache.pool_host import base, mha

from specprefill_sgl.platforms import host_cache


def test_slots_are_copied_to_their_counterparts():
    source, to = [torch.randn(6, 2, 3) for _ in range(2)], [torch.zeros(9, 2, 3) for _ in range(2)]
    host_cache.transfer_kv_direct(source, to, torch.tensor([5, 0]), torch.tensor([1, 8]), page_size=1)
    for one, other in zip(source, to, strict=True):
        assert torch.equal(other[[1, 8]], one[[5, 0]])
        assert other.count_nonzero() == 12


def test_nothing_is_pinned(monkeypatch):
    monkeypatch.setattr(base.HostKVCache, "pin_memory", None, raising=False)
    monkeypatch.setattr(base, "HICACHE_HOST_MEMORY_RESERVE_BYTES", base.HICACHE_HOST_MEMORY_RESERVE_BYTES)
    host_cache.register()
    pool = object.__new__(mha.MHATokenToKVPoolHost)
    pool.pin_memory = True
    assert not pool.pin_memory
    assert base.host_memory_budget_bytes() == pytest.approx(base.available_host_memory_bytes(), rel=0.2)
