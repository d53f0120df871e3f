"""Streaming requests beside which something else happens."""

import json
import threading
import time
import uuid
from collections.abc import Callable

import requests

from tests.support.server import Server, body_of


class Stream(threading.Thread):
    """A streaming `/generate` request, under way at once.

    Ids are never reused: SGLang aborts whatever has the id of a stream two seconds after that stream has ended.

    Parameters
    ----------
    server : Server
    ids : list of int
    custom : dict
        `custom_params`.
    tokens : int
        To generate.

    Attributes
    ----------
    rid : str
    times : list of float
        When each chunk came.
    said : list of list of int
        The answer as each chunk had it.
    last : dict or None
        The last chunk, the whole reply if it was not aborted.
    """

    def __init__(self, server: Server, ids: list[int], custom: dict, tokens: int):
        super().__init__()
        self.times: list[float] = []
        self.said: list[list[int]] = []
        self.last: dict | None = None
        self.rid = uuid.uuid4().hex
        self._url = server.url + "/generate"
        self._body = body_of(ids, custom=custom, params={"max_new_tokens": tokens}, stream=True, rid=self.rid)
        self.start()

    def run(self):
        with requests.post(self._url, json=self._body, stream=True, timeout=120) as response:
            for line in response.iter_lines():
                if line.startswith(b"data: {"):
                    self.times.append(time.monotonic())
                    self.last = json.loads(line[6:])
                    self.said.append(self.last["output_ids"])


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
