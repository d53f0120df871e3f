"""A prefill and a decode server behind one address: real transfers, by mooncake over TCP, and a router of the tests' own."""

import contextlib
import importlib.util
import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import requests

from benchmarks import launch
from tests.support.server import Server, serve

MOONCAKE = importlib.util.find_spec("mooncake")
INSTALL = (
    "SGLang's transfers need mooncake: pip install mooncake-transfer-engine-non-cuda==0.3.13.post1, "
    "apt-get install libibverbs1 libnl-3-200 libnl-route-3-200"
)
# time for prompts to be drafted one after another on a slow machine
_ENVIRONMENT = {
    "MC_FORCE_TCP": "1",
    "MOONCAKE_PROTOCOL": "tcp",
    "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "300",
    "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "300",
}
_LISTS = ("positions", "scores", "votes")  # what only the prefill server's reply has


class Pair(Server):
    """Both servers as one: a request goes to both, the decode server's reply is the reply."""

    def __init__(self, url: str, prefill: Server, decode: Server):
        super().__init__(url, decode.log)
        self.prefill, self.decode = prefill, decode

    def draft_pools(self) -> dict:
        """Of the server that has a draft."""
        return self.prefill.draft_pools()

    def load(self) -> dict:
        """Of both together."""
        loads = self.prefill.load(), self.decode.load()
        return {name: sum(load[name] for load in loads) for name in ("num_used_tokens", "num_running_reqs", "num_waiting_reqs")}


class Prefill(Server):
    """A prefill server and the port at which decode servers ask for it."""

    def __init__(self, server: Server, port: int):
        super().__init__(server.url, server.log)
        self.port = port


@contextlib.contextmanager
def serve_prefill(folder: Path, target: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Prefill]:
    """Start the first of a pair."""
    port = launch.free_port()
    mine = ("--disaggregation-mode", "prefill", "--disaggregation-bootstrap-port", str(port), "--disable-overlap-schedule")
    with serve(folder / "prefill", target, *mine, *options, env=_environment(env)) as server:
        yield Prefill(server, port)


@contextlib.contextmanager
def serve_decode(
    prefill: Prefill, folder: Path, target: Path, *options: str, env: dict[str, str] | None = None
) -> Iterator[Pair]:
    """Start another second of it, and a router before both."""
    # SGLang's default for retracted requests takes 10 GiB at start
    mine = ("--disaggregation-mode", "decode", "--disaggregation-decode-retraction-backup", "cpu_tensor")
    with (
        serve(folder / "decode", target, *mine, *options, env=_environment(env)) as decode,
        _router(prefill.url, decode.url, prefill.port) as url,
    ):
        yield Pair(url, prefill, decode)


def _environment(env: dict[str, str] | None) -> dict[str, str]:
    """Mooncake is found where the tests find it."""
    assert MOONCAKE is not None
    assert MOONCAKE.origin is not None
    env = {**launch.python_path(), **_ENVIRONMENT, **(env or {})}
    return env | {"PYTHONPATH": os.pathsep.join((env["PYTHONPATH"], str(Path(MOONCAKE.origin).parents[1])))}


@contextlib.contextmanager
def _router(prefill: str, decode: str, bootstrap_port: int) -> Iterator[str]:
    """URL of a server that sends what it gets to both, with the number of a transfer, as SGLang's router does.

    Lists that only the prefill server knows are put into the decode server's reply.
    """
    rooms = itertools.count(1)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # a stream ends with its connection

        def log_message(self, *_):
            pass

        def do_GET(self):
            self._answer(requests.get(decode + self.path, timeout=60))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "{}")
            if self.path in ("/generate", "/v1/completions", "/v1/chat/completions"):
                body |= {"bootstrap_host": "127.0.0.1", "bootstrap_port": bootstrap_port, "bootstrap_room": next(rooms)}
            with ThreadPoolExecutor(1) as pool, contextlib.suppress(BrokenPipeError):
                # the prefill server answers when the transfer has ended
                silent = {**body, "stream": False}
                first = pool.submit(requests.post, prefill + self.path, json=silent, timeout=300)
                with requests.post(decode + self.path, json=body, stream=True, timeout=300) as second:
                    if body.get("stream"):
                        self._pass_on(second)
                    else:
                        self._answer(second, first.result())

        def _pass_on(self, stream):
            self.send_response(stream.status_code)
            self.end_headers()
            for line in stream.iter_lines():
                self.wfile.write(line + b"\n")
                self.wfile.flush()

        def _answer(self, second, first=None):
            content = second.content
            if first is not None and self.path == "/generate" and {first.status_code, second.status_code} == {200}:
                content = json.dumps(_merged(first.json(), second.json())).encode()
            bad = next((one for one in (first, second) if one is not None and one.status_code != 200), second)
            self.send_response(bad.status_code)
            self.send_header("content-type", second.headers.get("content-type", "text/plain"))
            self.end_headers()
            self.wfile.write(content if bad is second else bad.content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _merged(first: object, second: object) -> object:
    if isinstance(second, list):
        assert isinstance(first, list)
        return [_merged(*both) for both in zip(first, second, strict=True)]
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    known = first["meta_info"].get("spec_prefill", {})
    said = second["meta_info"].get("spec_prefill", {})
    said |= {name: known.get(name) for name in _LISTS if name in said}
    return second
