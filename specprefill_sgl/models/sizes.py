"""How large the draft's private pools are."""

from specprefill_sgl.config import SpecPrefillConfig

MAX_PROMPTS = 16  # prompts drafted together at most: rows of the draft's request table
MAX_STATES = 64  # recurrent states of a hybrid draft: those of the prompts in progress, the others of cached prefixes


def pool_tokens(config: SpecPrefillConfig, context_len: int, page_size: int) -> int:
    """Slots of the KV pool, whole pages: as configured, or the longest prompt with everybody's lookahead."""
    wanted = config.draft_max_tokens or context_len + MAX_PROMPTS * (config.most_lookahead + page_size)
    return -(-wanted // page_size) * page_size
