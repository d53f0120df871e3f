"""A real server of a step: started, asked, ended with every process it has."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import requests

from specprefill_sgl.cli.doctor import machine
from specprefill_sgl.cli.doctor.models import Pair
from specprefill_sgl.cli.doctor.steps import telling

STOCK = {"SGLANG_PLUGINS": "specprefill_cpu"}  # SGLang without this plugin
_START_S = 240


class ServerError(RuntimeError):
    """The server did not start; the message is its log's most telling line."""


class Server:
    """A server that is ready: `log`, and what is asked of it."""

    def __init__(self, url: str, log: Path):
        self._url, self.log = url, log

    def generate(self, ids: list[int], custom: dict[str, Any] | None, tokens: int, *, flush: bool = True) -> dict[str, Any]:
        """A greedy reply to a prompt, its radix cache emptied before; `seconds` is the time it took."""
        if flush:
            flush_cache(self._url)
        params: dict[str, Any] = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        if custom is not None:
            params["custom_params"] = custom
        body = {"input_ids": ids, "sampling_params": params, "return_logprob": tokens > 1}
        start = time.perf_counter()
        response = requests.post(f"{self._url}/generate", json=body, timeout=120)
        took = time.perf_counter() - start
        if response.status_code != 200:
            raise ServerError(f"/generate answered {response.status_code}: {response.text[:200]}")
        return {**response.json(), "seconds": took}

    def info(self) -> dict[str, Any]:
        """`/server_info`."""
        return requests.get(f"{self._url}/server_info", timeout=60).json()


def flush_cache(url: str, deadline_s: float = 30) -> None:
    """Empty the radix cache; SGLang refuses while requests run, so this also waits for the server to be idle."""
    ends = time.monotonic() + deadline_s
    while requests.post(f"{url}/flush_cache", timeout=60).status_code != 200:
        if time.monotonic() > ends:
            raise ServerError("the server did not become idle: its radix cache could not be flushed")
        time.sleep(0.1)


@contextlib.contextmanager
def serve(
    model: Path, pair: Pair, backend: str, log: Path, *options: str, env: dict[str, str] | None = None
) -> Iterator[Server]:
    """Start one of a pair's models, with more flags.

    Raises
    ------
    ServerError
    """
    port = free_port()
    words = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model.resolve()), "--port", str(port)]
    words += [
        "--attention-backend",
        backend,
        "--dtype",
        pair.dtype,
        "--max-running-requests",
        "8",
        "--decode-log-interval",
        "2",
    ]
    words += ["--max-total-tokens", str(2 * pair.length + 4096)]
    if not machine.has_gpu():
        words += ["--device", "cpu", "--mem-fraction-static", "0.2"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*words, *options], stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}
        )
    try:
        if not becomes_healthy(process, f"http://127.0.0.1:{port}", _START_S):
            how = "did not start" if process.poll() is not None else f"was not ready after {_START_S} s"
            raise ServerError(f"the server {how}: {telling(log)}")
        yield Server(f"http://127.0.0.1:{port}", log)
    finally:
        _end(process)


def sparse_flags(draft: Path, pair: Pair) -> list[str]:
    """`--spec-prefill` with its draft, every prompt of 16 tokens or more eligible."""
    values = {"draft-model-path": draft.resolve(), "min-tokens": 16, "draft-max-tokens": 2 * pair.length}
    return ["--spec-prefill", *(word for name, value in values.items() for word in (f"--spec-prefill-{name}", str(value)))]


def becomes_healthy(process: subprocess.Popen, url: str, within_s: float) -> bool:
    """Wait for a server; False if it ends or time does before it answers."""
    ends = time.monotonic() + within_s
    while time.monotonic() < ends and process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{url}/health_generate", timeout=30).status_code == 200:
                return True
        time.sleep(0.5)
    return False


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        everybody = [process_ for process_ in psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        psutil.wait_procs(everybody, timeout=10)
        for one in everybody:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.kill()
    process.wait()


def free_port() -> int:
    """A TCP port nobody listens on, one that no connection is given in the half minute until the server binds it."""
    from sglang.srt.utils.network import get_free_port_below_ephemeral  # seconds to import

    return get_free_port_below_ephemeral()
