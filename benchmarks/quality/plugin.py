"""The SGLang plugin of the quality bench: lets a file choose the selector and the ablation while the server runs.

Loaded only by servers that `quality.server` starts. It replaces the source of votes (`Stage.source`), never what comes after,
and remembers votes, so that one prompt at several keep ratios is drafted once.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import torch

from benchmarks.quality.controls import CONTROLS
from specprefill_sgl.skipcode import as_numpy

SETTINGS = "SPECPREFILL_QUALITY_SETTINGS"
_REMEMBERED = 2000  # prompts
_FROM_CONFIG = ("lookahead", "pool_kernel", "chunk_size")


def settings() -> dict[str, Any]:
    """`method`, and for ablations `lookahead`, `pool_kernel`, `chunk_size`, `over_heads`, `positions` and `turns`."""
    return json.loads(Path(os.environ[SETTINGS]).read_text())


class Remembered:
    """A source of votes (see `specprefill_sgl.draft.drafting.Drafting`) that drafts only prompts it has not seen."""

    memo: ClassVar[dict[tuple[bytes, str], torch.Tensor]] = {}

    def __init__(self, source: Callable, stage: Any, prompts: Sequence):
        if len(self.memo) > _REMEMBERED:
            self.memo.clear()
        now = settings()
        key = json.dumps(now, sort_keys=True)
        self._keys = [(prompt.ids.tobytes(), key) for prompt in prompts]
        self._missing = [at for at, one in enumerate(self._keys) if one not in self.memo]
        self._drafting = None
        if now["method"] in CONTROLS:
            for at in self._missing:
                control = CONTROLS[now["method"]](as_numpy(prompts[at].ids), stage.config.chunk_size)
                self.memo[self._keys[at]] = torch.from_numpy(control).float()[None]
        elif self._missing:
            self._drafting = source(stage, [prompts[at] for at in self._missing])
        self.cached = [0] * len(prompts)

    @property
    def has_read(self) -> bool:
        return self._drafting is not None and self._drafting.has_read

    def step(self) -> bool:
        return self._drafting is None or self._drafting.step()

    def cancel(self, index: int) -> None:
        """Nothing: the bench cancels no request."""

    def votes(self) -> list[torch.Tensor]:
        if self._drafting is not None:
            self.memo.update(zip((self._keys[at] for at in self._missing), self._drafting.votes(), strict=True))
        return [self.memo[key] for key in self._keys]

    def release(self) -> None:
        if self._drafting is not None:
            self._drafting.release()


def register() -> None:
    """Wrap the stage; idempotent."""
    from specprefill_sgl import stage, state, turns
    from specprefill_sgl.draft import voting

    if hasattr(stage.Stage, "quality_config"):
        return
    stage.Stage.quality_config = None
    source, begin, without_draft, decide = (
        stage.Stage.source,
        stage.Stage.begin,
        stage.Stage.without_draft,
        state.PromptState.decide,
    )
    layer_votes, max_votes = voting.layer_votes, voting.max_votes

    def configured(method):
        def call(self, *arguments):
            now = settings()
            changed = {name: now[name] for name in _FROM_CONFIG if name in now}
            self.quality_config = self.quality_config or self.config
            self.config = self.draft.config = msgspec.structs.replace(self.quality_config, **changed)
            return method(self, *arguments)

        return call

    def over_heads(*arguments, **options):
        return (mean_layer_votes if settings().get("over_heads") == "mean" else layer_votes)(*arguments, **options)

    def over_layers(layers):
        return torch.stack(list(layers)).mean(0) if settings().get("over_heads") == "mean" else max_votes(layers)

    def decide_positions(self, outcome):
        decide(self, outcome)
        if settings().get("positions") == "renumbered" and self.is_sparse:
            self.offsets, self.delta = self.offsets * 0, 0

    positions, continued = stage.Stage._positions, turns.Turns.continued

    def without_revival(self, prompt, *selected):
        found = positions(self, prompt, *selected)
        if settings().get("turns") == "no_revival" and prompt.kept is not None:
            new = found[len(prompt.kept) :]
            return np.concatenate([prompt.kept, new[new > prompt.kept.max()]])
        return found

    def only_if_sticky(self, ids, namespace):
        return None if settings().get("turns") == "fresh" else continued(self, ids, namespace)

    stage.Stage._positions, turns.Turns.continued = without_revival, only_if_sticky
    stage.Stage.source = lambda self, prompts: Remembered(source, self, prompts)
    stage.Stage.begin, stage.Stage.without_draft = configured(begin), configured(without_draft)
    voting.layer_votes, voting.max_votes, voting.kernel_votes = over_heads, over_layers, voting.torch_votes
    state.PromptState.decide = decide_positions


def mean_layer_votes(queries, keys, *, scaling: float, logit_cap: float, pool_kernel: int, sinks: None = None) -> torch.Tensor:
    """As `layer_votes`, with the mean over heads in place of the maximum (ablation; ungrouped heads, no cap, no sinks)."""
    logits = torch.einsum("vhd,nhd->vhn", queries.float(), keys.float()) * scaling
    pooled = torch.nn.functional.avg_pool1d(logits.softmax(-1), pool_kernel, stride=1, padding=pool_kernel // 2)
    return pooled.mean(dim=1)
