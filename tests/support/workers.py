"""Connections to the single processes that serve one port (`--tokenizer-worker-num`): which of them answers is known."""

import http.client
import json
import time
from typing import NamedTuple

import psutil

from tests.support.server import Server

# of the servers: seconds in which a process must have imported SGLang, and for which an idle connection stays
PATIENT = {"SGLANG_UVICORN_WORKER_HEALTHCHECK_TIMEOUT": "120", "SGLANG_TIMEOUT_KEEP_ALIVE": "600"}


class Reply(NamedTuple):
    """An HTTP reply, a stream's included, once it is complete."""

    status: int
    text: str

    def json(self):
        return json.loads(self.text)

    def events(self) -> list[dict]:
        """The JSON events of a stream."""
        return [json.loads(line.removeprefix("data: ")) for line in self.text.splitlines() if line.startswith("data: {")]


class Worker:
    """One connection, hence one process: `pid` answers everything that is posted. It is never opened a second time."""

    def __init__(self, server: Server):
        host, port = server.url.removeprefix("http://").split(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=300)
        self._connection.connect()
        self._connection.auto_open = 0
        self._ask("GET", "/health")
        ours = self._connection.sock.getsockname()
        holders = [one.pid for one in psutil.net_connections("tcp") if one.raddr == ours]
        self.pid = holders[0]
        assert holders == [self.pid]

    def post(self, path: str, body: dict) -> Reply:
        """Streams are read to their end."""
        return self._ask("POST", path, json.dumps(body))

    def _ask(self, method: str, path: str, body: str | None = None) -> Reply:
        self._connection.request(method, path, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        return Reply(response.status, response.read().decode())


def workers_of(server: Server, count: int, deadline_s: float = 120) -> list[Worker]:
    """A connection to each of so many processes; who accepts one is chance, so they are opened until all have."""
    found: dict[int, Worker] = {}
    end = time.monotonic() + deadline_s
    while len(found) < count:
        assert time.monotonic() < end, f"only the processes {sorted(found)} have answered"
        worker = Worker(server)
        found.setdefault(worker.pid, worker)
    return list(found.values())
