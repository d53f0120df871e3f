"""The only place that knows SGLang's releases, options and model families, and what of them cannot be combined."""

from specprefill_sgl.compat.models import (
    absorb_latents,
    cannot_resume,
    check_draft,
    check_first_layers,
    check_target,
    draft_attention_backend,
    draft_model_config,
    first_layers_config,
    hybrid_config,
    is_latent,
    key_dim,
    never_run,
    target_model_config,
)
from specprefill_sgl.compat.options import (
    INDEXED_BY_POSITIONS,
    SHORTEST_QUEUE,
    SPECULATIVE_DRAFT_FLAG,
    cannot_use,
    check_server_options,
    check_version,
)

__all__ = [
    "INDEXED_BY_POSITIONS",
    "SHORTEST_QUEUE",
    "SPECULATIVE_DRAFT_FLAG",
    "absorb_latents",
    "cannot_resume",
    "cannot_use",
    "check_draft",
    "check_first_layers",
    "check_server_options",
    "check_target",
    "check_version",
    "draft_attention_backend",
    "draft_model_config",
    "first_layers_config",
    "hybrid_config",
    "is_latent",
    "key_dim",
    "never_run",
    "target_model_config",
]
