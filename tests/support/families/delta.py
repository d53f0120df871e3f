"""Gated delta net hybrids: three linear layers, then one of full attention."""

from tests.support.families.family import Family

FAMILIES: dict[str, Family] = {}
