"""A headless Chromium for pages, and a playground to look at."""

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from benchmarks import launch

_QUIET = ("disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-component-update")
_ARGUMENTS = [f"--{name}" for name in ("no-sandbox", "disable-sync", *_QUIET)]


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Chromium; the test is skipped where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield chromium
        chromium.close()


@contextlib.contextmanager
def playground(url: str) -> Iterator[str]:
    """URL of a playground that asks the server at `url`."""
    port = launch.free_port()
    words = [sys.executable, "-m", "specprefill_sgl", "playground", "--url", url, "--port", str(port)]
    process = subprocess.Popen(words, cwd=launch.ROOT, start_new_session=True)
    try:
        own = f"http://127.0.0.1:{port}"
        _wait(process, own)
        yield own
    finally:
        launch.end(process)


def _wait(process: subprocess.Popen, url: str) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            if requests.get(url, timeout=5).ok:
                return
        time.sleep(0.2)
    raise RuntimeError(f"no playground at {url}")
