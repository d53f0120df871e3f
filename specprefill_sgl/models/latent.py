"""Latent attention (MLA) of a draft: always absorbed, so that queries are of the keys' kind.

The paged pool holds latents. SGLang expands them where that is cheaper (a prompt without a prefix), and then the queries that
pass the attention backend belong to keys that are never stored. Absorbed, they are the ones whose logits with the latents are
the layer's.
"""

from typing import Any

from specprefill_sgl import compat

_NAME = "spec_prefill_absorbed"  # SGLang asks the runner's backend for its name, and a table for what to do under it


def absorb_always(backend: Any) -> None:
    """Make the model of this attention backend take the absorbed path, in extends and decodes."""
    compat.absorb_latents(_NAME)
    backend.prefill_attention_backend_str = backend.decode_attention_backend_str = _NAME
