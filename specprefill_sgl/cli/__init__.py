"""`python -m specprefill_sgl check | explain | calibrate | playground | train-predictor | tune`."""
