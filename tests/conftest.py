"""Fixtures shared by the tests: tiny models built once, Hugging Face models loaded once."""

import functools
import statistics
from pathlib import Path

import hypothesis
import pytest

from tests.support.interpreter import interpret_kernels

interpret_kernels()
# nothing is asserted about time on shared machines, and hypothesis' own clocks are assertions too
hypothesis.settings.register_profile("shared machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def pair_of(tmp_path_factory):
    """Family name -> (target, draft) directories; built on first use."""
    from tests.support import tiny_models

    folder = tmp_path_factory.mktemp("models")

    @functools.cache
    def build(family: str) -> tuple[Path, Path]:
        target, draft = tiny_models.save_pair(family, folder / family)
        return Path(target), Path(draft)

    return build


@pytest.fixture(scope="session")
def model_of(tmp_path_factory):
    """Name of an attention family's model -> its directory; built on first use."""
    from tests.support import families

    folder = tmp_path_factory.mktemp("families")

    @functools.cache
    def build(name: str, seed: int = 7, layers: int | None = None) -> Path:
        return families.save(name, folder / f"{name}-{seed}-{layers or ''}", seed, layers)

    return build


@pytest.fixture(scope="session")
def mixture_of(pair_of, tmp_path_factory):
    """Family name -> what a server of that pair with no option at all says to the mixture (`tests.support.mixture`)."""
    from tests.support.mixture import ask_mixture
    from tests.support.server import serve, sparse_options

    @functools.cache
    def ask(family: str):
        target, draft = pair_of(family)
        with serve(tmp_path_factory.mktemp("mixture"), target, *sparse_options(draft)) as server:
            return ask_mixture(server)

    return ask


@pytest.fixture(scope="session")
def hugging_face():
    """Directory -> float32 Hugging Face model in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(
        1
    )  # two that wait for each other between a tiny model's operators, beside a server: three times slower

    @functools.cache
    def load(path: Path):
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    return load


class ServerStarts:
    """Says at the end what servers took to start, those of all processes of pytest-xdist together."""

    def __init__(self):
        self.seconds: list[float] = []

    @pytest.hookimpl(optionalhook=True)  # there with pytest-xdist only
    def pytest_testnodedown(self, node):
        self.seconds += getattr(node, "workeroutput", {}).get("server_starts", [])

    def pytest_sessionfinish(self, session):
        from benchmarks import launch

        self.seconds += launch.start_seconds
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["server_starts"] = self.seconds

    def pytest_terminal_summary(self, terminalreporter):
        if self.seconds:
            each, all_of_them = statistics.median(self.seconds), sum(self.seconds)
            terminalreporter.write_line(
                f"{len(self.seconds)} servers started, {each:.0f} s (median), {all_of_them:.0f} s in all"
            )


def pytest_configure(config):
    config.pluginmanager.register(ServerStarts())


def pytest_collection_modifyitems(items):
    for item in items:
        if "/e2e/" in str(item.path):
            item.add_marker("e2e")
