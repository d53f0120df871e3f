"""Speed: first tokens, throughput, kernels; dense and sparse side by side, in one run."""
