"""Fixtures of the unit tests: SGLang's process-wide configuration."""

import pytest


@pytest.fixture(scope="module")
def published(pair_of):
    """SGLang's configuration of this process: its objects read it."""
    from sglang.srt.runtime_context import publish, restore_context, snapshot_context
    from sglang.srt.server_args import ServerArgs

    before = snapshot_context()
    args = ServerArgs(model_path=str(pair_of("llama")[0]), device="cpu", attention_backend="torch_native")
    args.resolve_once()
    publish(args, role="scheduler")
    yield
    restore_context(before)
