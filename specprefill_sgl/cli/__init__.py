"""`python -m specprefill_sgl check | explain | calibrate | playground | tune`."""
