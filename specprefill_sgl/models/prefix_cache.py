"""The draft's prefix cache: SGLang's radix cache over the draft's own pools."""

from typing import Any

from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import HybridReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixCache
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache


def prefix_cache(runner: Any, page_size: int, *, disable: bool) -> Any:
    """A cache that matches no prefix whose recurrent state or window it does not hold.

    States are kept at the ends of what was read, which SGLang can name in pages of one token only: a hybrid draft with larger
    pages reads every prompt anew.
    """
    params = CacheInitParams(
        disable=disable,
        req_to_token_pool=runner.req_to_token_pool,
        token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
        page_size=page_size,
    )
    components = [ComponentType.FULL]
    if isinstance(runner.token_to_kv_pool_allocator, SWATokenToKVPoolAllocator):
        components.append(ComponentType.SWA)
        params.sliding_window_size = runner.sliding_window_size
    if isinstance(runner.req_to_token_pool, HybridReqToTokenPool):
        components.append(ComponentType.MAMBA)
        params.disable = disable or page_size > 1
    if len(components) == 1:
        return RadixCache(params)
    params.tree_components = tuple(components)
    return UnifiedRadixCache(params)
