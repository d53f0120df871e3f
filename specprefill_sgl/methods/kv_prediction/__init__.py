"""KV Prediction (arXiv 2410.08391), experimental: the target's keys and values are computed from those of a smaller model."""

WARNING = "kv-prediction is experimental."
