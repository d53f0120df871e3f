"""Starts the real server with --spec-prefill and ends exactly what it started."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import requests
import torch

START_DEADLINE_S = 300
_ON_CPU = (
    "--device cpu --attention-backend torch_native --dtype bfloat16 --max-total-tokens 20000 --mem-fraction-static 0.2 "
    "--max-running-requests 8"
)


class DemoError(RuntimeError):
    """Something is wrong with the demo; the message is one sentence."""


@contextlib.contextmanager
def serve(target: Path, draft: Path, log: Path, *, keep_ratio: float) -> Iterator[str]:
    """URL of a server that is ready; its output goes to `log`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(target)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--chunked-prefill-size", "2048"]
    command += ["--spec-prefill", "--spec-prefill-draft-model-path", str(draft), "--spec-prefill-min-tokens", "512"]
    command += ["--spec-prefill-keep-ratio", str(keep_ratio)]
    command += [] if torch.cuda.is_available() else _ON_CPU.split()
    print("$ " + " ".join(["python", *command[1:]]), flush=True)
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, url, log)
        yield url
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)


def _wait_until_ready(process: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            if requests.get(url + "/health_generate", timeout=30).status_code == 200:
                return
        time.sleep(0.5)
    tail = "\n".join(log.read_text().splitlines()[-15:])
    raise DemoError(f"the server did not start; the end of {log} is:\n{tail}")
