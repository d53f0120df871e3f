"""A throw-away SGLang plugin that makes a real server's draft fail or dawdle, its prompts' hashes collide, or undoes a hook."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from benchmarks.launch import plugin_environment
from tests.support.server import Server, serve

RETRACTING = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"}  # SGLang retracts every seventh decode

_PLUGIN = """
import os, random, time

SWITCHES = {switches!r}


def on(name):
    return os.path.exists(os.path.join(SWITCHES, name))


def register():
    import torch.distributed
    from specprefill_sgl.methods.model_pass import ModelPass
    from specprefill_sgl.models.group import PromptGroup

    look_ahead, votes, joined = PromptGroup._look_ahead, ModelPass.votes, ModelPass.joined

    from specprefill_sgl.request.turns import Turns

    step, start, draw = PromptGroup.step, Turns.__init__, random.Random(7)

    def faulty_step(self):
        if on("slow_step"):
            time.sleep(0.2)
        if on("some_steps") and draw.random() < 0.2:
            raise RuntimeError("injected fault at a random chunk")
        return step(self)

    def colliding(self):
        start(self, (lambda before, block: 0)) if on("collide") else start(self)

    PromptGroup.step, Turns.__init__ = faulty_step, colliding

    def failing_look_ahead(self, batch):
        if on("slow_draft"):
            time.sleep(2)
        if on("draft"):
            raise RuntimeError("injected draft fault")
        look_ahead(self, batch)

    def failing_votes(self):
        if on("score") or (on("score_on_rank_1") and torch.distributed.get_rank() == 1):
            raise RuntimeError("injected scoring fault")
        result = votes(self)
        return [one._replace(votes=one.votes * float("nan")) for one in result] if on("nan") else result

    def failing_joined(self, cast):
        result = joined(self, cast)
        if on("join") or (on("join_on_rank_1") and torch.distributed.get_rank() == 1):
            raise RuntimeError("injected joining fault")
        return result

    from specprefill_sgl.hooks import scheduler

    revive, make_exact = scheduler.revive, scheduler.make_exact

    def at_once(*arguments):
        back = revive(*arguments)
        return [] if on("revive_at_once") else back

    def exact_at_once(*arguments):
        back = make_exact(*arguments)
        return [] if on("exact_at_once") else back

    scheduler.revive, scheduler.make_exact = at_once, exact_at_once
    PromptGroup._look_ahead, ModelPass.votes, ModelPass.joined = failing_look_ahead, failing_votes, failing_joined

    from specprefill_sgl.hooks import storage

    waits, arrived = storage.waits, set()

    def not_at_arrival(req):
        if not on("prefetch_at_arrival"):
            return waits(req)
        is_known = req.rid in arrived
        arrived.add(req.rid)
        return is_known

    storage.waits = not_at_arrival

    from specprefill_sgl.hooks import lazy
    from specprefill_sgl.methods.lazy.chooser import Chooser

    seat, lazy_votes = lazy._seat, Chooser._votes

    def seat_of(stage, method, batch, at, req, is_extend):
        req.skip_radix_cache_insert = not on("lazy_in_tree")
        return seat(stage, method, batch, at, req, is_extend)

    def failing_lazy_votes(self, *arguments):
        if on("lazy_score") or (on("lazy_score_on_rank_1") and torch.distributed.get_rank() == 1):
            raise RuntimeError("injected scoring fault")
        return lazy_votes(self, *arguments)

    lazy._seat, Chooser._votes = seat_of, failing_lazy_votes

    from specprefill_sgl.hooks.kv_events import PlainBlocks

    of = PlainBlocks.of
    PlainBlocks.of = lambda self, events: events if on("announce_all") else of(self, events)
"""


def plugin_on_path(folder: Path, name: str, source: str) -> dict[str, str]:
    """Write an SGLang plugin as an importable distribution; returns the environment that makes a server load it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    return plugin_environment(folder, name, f"{name}:register")


class Faults:
    """The plugin's folder; `env` makes a server load it, `switch` turns a fault on or off while the server runs."""

    def __init__(self, folder: Path):
        self._switches = folder / "switches"
        self._switches.mkdir(parents=True)
        self.env = plugin_on_path(folder, "specprefill_faults", _PLUGIN.format(switches=str(self._switches)))

    def switch(self, name: str, on: bool = True) -> None:
        """Turn a fault on or off."""
        file = self._switches / name
        file.touch() if on else file.unlink(missing_ok=True)


@contextlib.contextmanager
def serve_with_faults(folder: Path, target: Path, *options: str, retracting: bool) -> Iterator[tuple[Server, Faults]]:
    """A server and its faults; SGLang may retract its requests all the time."""
    faults = Faults(folder / "faults")
    with serve(folder, target, *options, env=faults.env | (RETRACTING if retracting else {})) as server:
        yield server, faults
