"""Server configuration."""

from specprefill_sgl.config.settings import (
    PREFIX,
    Backfill,
    ConfigError,
    SpecPrefillConfig,
    flag,
    needs_queue,
    needs_radix_cache,
)
from specprefill_sgl.config.sources import ENVIRONMENT_VARIABLE, resolve

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "PREFIX",
    "Backfill",
    "ConfigError",
    "SpecPrefillConfig",
    "flag",
    "needs_queue",
    "needs_radix_cache",
    "resolve",
]
