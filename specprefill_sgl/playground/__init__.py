"""A page that asks a server dense and sparse, and shows what was kept: `python -m specprefill_sgl playground`."""
