"""Where tests of kernels and pools run: on the GPU if there is one."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
