"""Fixtures of the unit tests: SGLang's process-wide configuration, and command lines as it resolves them."""

import json
import logging
import os
import shutil
from unittest import mock

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


@pytest.fixture
def resolved(pair_of, tmp_path, monkeypatch):
    """Makes the ServerArgs of a command line, as a server's launcher does, in an environment that is put back."""
    from sglang.srt.server_args import prepare_server_args

    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)  # SGLang's would close pytest's handlers
    with mock.patch.dict(os.environ):

        def resolve(line, *, architecture=None, check=True):
            target = pair_of("llama")[0]
            if architecture is not None:
                target = shutil.copytree(target, tmp_path / "target")
                settings = json.loads((target / "config.json").read_text())
                (target / "config.json").write_text(json.dumps({**settings, "architectures": [architecture]}))
            server_args = prepare_server_args(["--model-path", str(target), "--device", "cpu", *line.split()])
            server_args.resolve_once()
            if check:
                server_args.check_server_args()
            return server_args

        yield resolve
