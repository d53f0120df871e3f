"""Real SGLang servers for the tests: start one, talk to it, end exactly what was started."""

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

START_DEADLINE_S = 240
CONTROL = {"SGLANG_PLUGINS": "specprefill_cpu"}  # stock SGLang on our platform, our plugin off


class Server:
    """A running server: `url`, its log, and the requests the tests make."""

    def __init__(self, process: subprocess.Popen, url: str, log: Path):
        self.process, self.url, self.log = process, url, log

    def post(self, path: str, body: dict, **kwargs) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=300, **kwargs)

    def generate(self, ids: list[int], *, custom: dict | None = None, params: dict | None = None, **fields) -> dict:
        """Greedy `/generate` on token ids; returns the reply's JSON, which must be a success."""
        response = self.post("/generate", body_of(ids, custom=custom, params=params, **fields))
        assert response.status_code == 200, response.text
        return response.json()

    def state(self) -> dict:
        """`/server_info`'s internal state of the first scheduler."""
        return requests.get(self.url + "/server_info", timeout=60).json()["internal_states"][0]

    def flush(self) -> None:
        """Empty the radix cache; SGLang refuses while requests run, so this also waits for the server to be idle."""
        deadline = time.monotonic() + 30
        while requests.post(self.url + "/flush_cache", timeout=60).status_code != 200:
            assert time.monotonic() < deadline, "the server did not become idle: something leaked"
            time.sleep(0.1)

    def load(self) -> dict:
        """Used tokens and waiting and running requests, as the scheduler counts them."""
        return requests.get(self.url + "/v1/loads?include=core", timeout=60).json()["loads"][0]


def body_of(ids: list[int], *, custom: dict | None = None, params: dict | None = None, **fields) -> dict:
    """Body of a greedy `/generate` request that ignores the end of sequence."""
    sampling = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True, **(params or {})}
    if custom is not None:
        sampling["custom_params"] = custom
    return {"input_ids": ids, "sampling_params": sampling, **fields}


def command(target: Path, *options: str) -> list[str]:
    """`sglang.launch_server` for a tiny float32 model, on the GPU if there is one; given options beat the defaults."""
    on_cpu = {"--device": "cpu", "--attention-backend": "torch_native"}
    defaults = {
        **({"--attention-backend": "triton"} if torch.cuda.is_available() else on_cpu),
        "--dtype": "float32",
        "--max-total-tokens": "40000",
        "--mem-fraction-static": "0.2",
        "--chunked-prefill-size": "512",
        "--max-running-requests": "40",
    }
    flat = [word for pair in defaults.items() if pair[0] not in options for word in pair]
    return [sys.executable, "-m", "sglang.launch_server", "--model-path", str(target), *flat, *options]


def sparse_options(draft: Path, **options: object) -> list[str]:
    """`--spec-prefill` with every prompt of 16 tokens or more eligible, unless said otherwise."""
    values = {"draft_model_path": draft, "min_tokens": 16, **options}
    words = [word for name, value in values.items() for word in (f"--spec-prefill-{name.replace('_', '-')}", str(value))]
    return ["--spec-prefill", *words]


@contextlib.contextmanager
def serve(folder: Path, target: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """Start a server, wait until it is healthy, end its process group at the end."""
    port = _free_port()
    log = folder / f"server-{port}.log"
    words = [*command(target, *options), "--port", str(port), "--host", "127.0.0.1"]
    with log.open("w") as output:
        process = subprocess.Popen(
            words,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            cwd=folder,
        )
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        _wait_until_healthy(server)
        yield server
    finally:
        _end(process)


def refused(target: Path, *options: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Start a server that must refuse to start; returns its exit status and everything it printed."""
    words = [*command(target, *options), "--port", str(_free_port())]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=START_DEADLINE_S)
    finally:
        _end(process)
    return process.returncode, output


def _wait_until_healthy(server: Server) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        with contextlib.suppress(requests.RequestException):
            if requests.get(server.url + "/health_generate", timeout=20).status_code == 200:
                return
        time.sleep(0.5)
    raise AssertionError(f"the server did not start:\n{server.log.read_text()[-4000:]}")


def _end(process: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
