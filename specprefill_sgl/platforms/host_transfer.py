"""KV that is sent from memory of the host, where SGLang's fastest way asks for pinned memory and CUDA's events."""

from typing import Any

import torch
from sglang.srt.disaggregation import utils

from specprefill_sgl.platforms.replacement import replace


def register() -> None:
    """Have page numbers of a prompt's KV read at once, in this process. Beside an accelerator nothing changes.

    Said to a sender's class when it is asked for: importing one here would import prometheus_client, which must not be there
    before SGLang has set its folder.
    """
    if torch.accelerator.is_available():
        return
    original = utils.get_kv_class

    def get_kv_class(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        if hasattr(found, "supports_host_tensor_indices"):
            found.supports_host_tensor_indices = False
        return found

    replace("sglang.srt.disaggregation.utils", get_kv_class=get_kv_class)
