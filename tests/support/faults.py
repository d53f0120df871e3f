"""A throw-away SGLang plugin that makes the draft fail or dawdle in a real server, switched by files."""

from pathlib import Path

from benchmarks.launch import plugin_environment

_PLUGIN = """
import os, time

SWITCHES = {switches!r}


def on(name):
    return os.path.exists(os.path.join(SWITCHES, name))


def register():
    import torch.distributed
    from specprefill_sgl.draft.drafting import Drafting
    from specprefill_sgl.draft.group import DraftGroup

    decode, votes = DraftGroup._decode, Drafting._votes

    step = DraftGroup.step

    def slow_step(self):
        if on("slow_step"):
            time.sleep(0.2)
        return step(self)

    DraftGroup.step = slow_step

    def failing_decode(self):
        if on("slow_draft"):
            time.sleep(0.3)
        if on("draft"):
            raise RuntimeError("injected draft fault")
        return decode(self)

    def failing_votes(self, drafted):
        if on("score") or (on("score_on_rank_1") and torch.distributed.get_rank() == 1):
            raise RuntimeError("injected scoring fault")
        result = votes(self, drafted)
        return result * float("nan") if on("nan") else result

    DraftGroup._decode, Drafting._votes = failing_decode, failing_votes
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
