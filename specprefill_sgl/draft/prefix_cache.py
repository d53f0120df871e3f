"""The draft's prefix cache: SGLang's radix cache over the draft's own pools."""

from typing import Any

from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import HybridReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixCache
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache


def prefix_cache(runner: Any, page_size: int, *, disable: bool) -> Any:
    """A cache that matches no prefix whose recurrent state it does not hold.

    States are kept at the ends of what was read, which SGLang can name in pages of one token only: a hybrid draft with larger
    pages reads every prompt anew.
    """
    params = CacheInitParams(
        disable=disable,
        req_to_token_pool=runner.req_to_token_pool,
        token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
        page_size=page_size,
    )
    if not isinstance(runner.req_to_token_pool, HybridReqToTokenPool):
        return RadixCache(params)
    params.disable = disable or page_size > 1
    params.tree_components = (ComponentType.FULL, ComponentType.MAMBA)
    return UnifiedRadixCache(params)
