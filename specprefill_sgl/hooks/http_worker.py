"""SGLang's HTTP app for the processes of `--tokenizer-worker-num`, which import an app by name and load no plugins.

A process that could not check requests does not come up where Speculative Prefill is on.
"""

from sglang.srt.managers.multi_tokenizer_mixin import get_main_process_id, read_from_shared_memory
from sglang.srt.plugins import load_plugins

from specprefill_sgl.hooks import verify
from specprefill_sgl.hooks.launch import config_of

load_plugins()
_, _server_args, _ = read_from_shared_memory(f"multi_tokenizer_args_{get_main_process_id()}")
if config_of(_server_args) is not None:
    verify()

from sglang.srt.entrypoints.http_server import app  # noqa: E402 - with the hooks in place

__all__ = ["app"]
