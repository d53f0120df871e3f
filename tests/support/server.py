"""Real SGLang servers for the tests: what they serve with, and the requests tests make."""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import requests
import torch

from benchmarks import launch

CONTROL = launch.CONTROL


class Server:
    """A running server: `url`, its log, and the requests the tests make."""

    def __init__(self, url: str, log: Path):
        self.url, self.log = url, log

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

    def draft_pools(self) -> dict:
        """Sizes, free slots and rows of the draft's pools, from `/server_info`."""
        return {name: value for name, value in self.state()["spec_prefill"].items() if name.startswith("draft_")}

    def free(self) -> tuple[int, int, int]:
        """What no request holds of the reader's pools, whose cache stays; and how many requests run."""
        pools = self.draft_pools()
        return pools["draft_available_tokens"], pools["draft_available_requests"], self.load()["num_running_reqs"]

    def flush(self) -> None:
        """Empty the radix cache; SGLang refuses while requests run, so this also waits for the server to be idle."""
        launch.flush(self.url)

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
    on_gpu = {"attention_backend": "triton", "mem_fraction_static": "0.2"} if torch.cuda.is_available() else {}
    return launch.command(
        target,
        *options,
        dtype="float32",
        max_total_tokens="40000",
        chunked_prefill_size="512",
        max_running_requests="40",
        **on_gpu,
    )


def sparse_options(draft: Path | None, **options: object) -> list[str]:
    """`--spec-prefill` with every prompt of 16 tokens or more eligible and the paper's selection, unless said otherwise."""
    return launch.sparse_flags(draft, **{"min_tokens": 16, "selection": "paper", **options})


def host_cache_options(files: str | None = None) -> list[str]:
    """HiCache: a host pool eight times the device's, as the CPU platform can copy to it; behind it files, if a folder is given.

    Of them it fetches from 64 tokens on, and admission waits until all is there. Servers run in the folder of their log.
    """
    options = ["--enable-hierarchical-cache", "--hicache-ratio", "8"]
    options += ["--hicache-io-backend", "direct", "--hicache-mem-layout", "layer_first"]
    if files is not None:
        settings = json.dumps({"prefetch_threshold": 64, "file_storage_path": files})
        options += ["--hicache-storage-backend", "file", "--hicache-storage-backend-extra-config", settings]
        options += ["--hicache-storage-prefetch-policy", "wait_complete"]
    return options


@contextlib.contextmanager
def serve(folder: Path, target: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """Start a server, wait until it is healthy, end its process group at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    log = Path(tempfile.mkstemp(prefix="server-", suffix=".log", dir=folder)[1])
    with launch.serve(command(target, *options), log, env) as url:
        yield Server(url, log)


def refused(target: Path, *options: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Start a server that must refuse to start; returns its exit status and everything it printed."""
    process = subprocess.Popen(
        [*command(target, *options), "--port", str(launch.free_port())],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=launch.START_DEADLINE_S)
    finally:
        launch.end(process)
    return process.returncode, output
