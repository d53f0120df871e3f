"""The server under test, with a switch for the rule: one server for every method that shares a draft."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks import launch
from benchmarks.quality.controls import CONTROLS
from benchmarks.quality.plugin import SETTINGS

_SETTINGS = {"selection": "paper"}


class QualityServer:
    """A running server: its URL, and which rule its next requests meet."""

    def __init__(self, url: str, settings: Path):
        self.url, self._settings = url, settings

    def choose(self, **changed: object) -> None:
        """Settings for all requests from now on; the radix cache is emptied."""
        launch.flush(self.url)
        self._settings.write_text(json.dumps({**_SETTINGS, **changed}))


@contextlib.contextmanager
def serve(target: Path, draft: Path | None, folder: Path, *options: str, method: str = "draft") -> Iterator[QualityServer]:
    """Start the server in float32; log, plugin and settings are in `folder`. Prompts of 64 tokens or more are eligible."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "settings.json"
    settings.write_text(json.dumps(_SETTINGS))
    env = launch.plugin_environment(folder, "specprefill_quality", "benchmarks.quality.plugin:register")
    words = launch.command(
        target,
        *launch.sparse_flags(draft, min_tokens=64, selection="paper", method=",".join([method, *CONTROLS])),
        *options,
        dtype="float32",
        max_total_tokens="40000",
        chunked_prefill_size="2048",
        max_running_requests="16",
    )
    with launch.serve(words, folder / "server.log", {**env, SETTINGS: str(settings)}) as url:
        yield QualityServer(url, settings)
