"""`python -m specprefill_sgl check | doctor | explain | calibrate | playground | train-predictor | tune`."""
