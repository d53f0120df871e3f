"""The SGLang plugin of the quality bench: adds the controls to the methods, lets a file choose the ablation of a server.

Loaded only by servers that `quality.server` starts. It wraps the passes of methods that read with a model, and remembers their
votes, so that one prompt at several keep ratios is read once.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import torch

from benchmarks.quality import control_methods
from specprefill_sgl.request.prompts import Cast

SETTINGS = "SPECPREFILL_QUALITY_SETTINGS"
_REMEMBERED = 2000  # prompts
_OF_RULE = ("lookahead", "window", "window_votes", "pool_kernel", "chunk_size")


def settings() -> dict[str, Any]:
    """`selection`, and for ablations fields of the rule (`_OF_RULE`), `over_heads`, `positions` and `turns`."""
    return json.loads(Path(os.environ[SETTINGS]).read_text())


class Remembered:
    """A pass (`specprefill_sgl.methods.protocol.Pass`) that reads only prompts it has not seen."""

    memo: ClassVar[dict[tuple[bytes, str], Cast]] = {}

    def __init__(self, begin: Callable[[Any, Sequence], Any], method: Any, prompts: Sequence):
        if len(self.memo) > _REMEMBERED:
            self.memo.clear()
        key = json.dumps([settings(), prompts[0].method], sort_keys=True)
        # a tail that is kept is not counted, and how long it is depends on the keep ratio
        self._keys = [(prompt.ids.tobytes(), f"{key} {prompt.counted}") for prompt in prompts]
        self._missing = [at for at, one in enumerate(self._keys) if one not in self.memo]
        self._pass = begin(method, [prompts[at] for at in self._missing]) if self._missing else None
        self.cached = [0] * len(prompts)

    @property
    def has_read(self) -> bool:
        return self._pass is not None and self._pass.has_read

    def step(self) -> bool:
        return self._pass is None or self._pass.step()

    def cancel(self, index: int) -> None:
        """Nothing: the bench cancels no request."""

    def joined(self, cast: Cast) -> Cast:
        """As it is remembered."""
        return cast

    def votes(self) -> list[Cast]:
        """Joined already: the bench has one rank."""
        if self._pass is not None:
            found = [self._pass.joined(one) for one in self._pass.votes()]
            self.memo.update(zip((self._keys[at] for at in self._missing), found, strict=True))
        return [self.memo[key] for key in self._keys]

    def release(self) -> None:
        if self._pass is not None:
            self._pass.release()


def register() -> None:
    """Wrap what is measured; idempotent."""
    control_methods.register()
    from specprefill_sgl.hooks import decisions
    from specprefill_sgl.hooks import scheduler as scheduler_hooks
    from specprefill_sgl.methods.model_method import ModelMethod
    from specprefill_sgl.request import state, turns
    from specprefill_sgl.scoring import voting
    from specprefill_sgl.stage import selecting

    if ModelMethod.begin.__module__ == __name__:
        return
    begin, decide, in_context = ModelMethod.begin, state.PromptState.decide, decisions.in_context
    layer_votes, max_votes = voting.layer_votes, voting.max_votes

    def ruled(scheduler, req, the_stage, waiting):
        now = settings()
        changed = {name: now[name] for name in _OF_RULE if name in now}
        own = state.state_of(req)
        rule = the_stage.methods[own.method].adapted(the_stage.config.rule_for(now["selection"], own.method))
        own.rule = msgspec.structs.replace(rule, **changed)
        return in_context(scheduler, req, the_stage, waiting)

    def over_heads(*arguments, **options):
        return (mean_layer_votes if settings().get("over_heads") == "mean" else layer_votes)(*arguments, **options)

    def over_layers(layers):
        return torch.stack(list(layers)).mean(0) if settings().get("over_heads") == "mean" else max_votes(layers)

    def decide_positions(self, outcome):
        decide(self, outcome)
        if settings().get("positions") == "renumbered" and self.is_sparse:
            self.offsets, self.delta = self.offsets * 0, 0

    positions, continued = selecting._positions, turns.Turns.continued

    def without_revival(prompt, *selected):
        found = positions(prompt, *selected)
        if settings().get("turns") == "no_revival" and prompt.kept is not None:
            new = found[len(prompt.kept) :]
            return np.concatenate([prompt.kept, new[new > prompt.kept.max()]])
        return found

    def only_if_sticky(self, ids, namespace):
        return None if settings().get("turns") == "fresh" else continued(self, ids, namespace)

    selecting._positions, turns.Turns.continued = without_revival, only_if_sticky

    def remembered(self, prompts):  # an answer is another each time, and what it is asked for needs the reader's keys
        recovers = prompts[0].answer or prompts[0].namespace[0] is not None
        return begin(self, prompts) if recovers else Remembered(begin, self, prompts)

    ModelMethod.begin = remembered
    scheduler_hooks.in_context = ruled
    voting.layer_votes, voting.max_votes, voting.kernel_votes = over_heads, over_layers, voting.torch_votes
    state.PromptState.decide = decide_positions


def mean_layer_votes(queries, keys, *, scaling: float, logit_cap: float, pool_kernel: int, **_all_seen: object) -> torch.Tensor:
    """As `layer_votes` of the paper, with the mean over heads in place of the maximum (ablation; ungrouped heads, no cap)."""
    logits = torch.einsum("vhd,nhd->vhn", queries.float(), keys.float()) * scaling
    pooled = torch.nn.functional.avg_pool1d(logits.softmax(-1), pool_kernel, stride=1, padding=pool_kernel // 2)
    return pooled.mean(dim=1)
