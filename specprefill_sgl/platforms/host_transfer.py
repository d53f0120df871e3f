"""KV that is sent from memory of the host, where SGLang's fastest way asks for pinned memory and CUDA's events."""

import torch


def register() -> None:
    """Have page numbers of a prompt's KV read at once, in this process. Beside an accelerator nothing changes."""
    if torch.accelerator.is_available():
        return
    from sglang.srt.disaggregation.mooncake.conn import MooncakeKVSender

    MooncakeKVSender.supports_host_tensor_indices = False
