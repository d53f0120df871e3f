"""Latent attention (MLA)."""

from tests.support.families.family import Family

FAMILIES: dict[str, Family] = {}
