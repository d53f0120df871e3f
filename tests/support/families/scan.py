"""Hybrids of state space layers (Mamba2) or Kimi delta attention and full attention."""

from tests.support.families.family import Family

FAMILIES: dict[str, Family] = {}
