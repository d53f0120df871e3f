"""Triton kernels without a GPU."""

import pytest
import torch


def interpret_kernels() -> None:
    """Define this project's kernels for Triton's interpreter if there is no GPU.

    Triton decides when a kernel is defined, its own library functions included, so this must come before anything imports
    `triton`. The variable is unset again: SGLang's kernels, and servers that tests start, are what they always are.
    """
    if torch.cuda.is_available():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        import triton.experimental.gluon  # noqa: F401 (a launch imports it, and it asserts that the variable is set)

        import specprefill_sgl.scoring.triton_scoring  # noqa: F401
