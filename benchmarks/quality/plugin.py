"""The SGLang plugin of the quality bench: lets a file choose the selector and the ablation while the server runs.

Loaded only by servers that `quality.server` starts. It replaces the source of votes (`Stage.votes`), never what comes after,
and remembers votes, so that one prompt at several keep ratios is drafted once.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.quality.controls import CONTROLS

SETTINGS = "SPECPREFILL_QUALITY_SETTINGS"
_REMEMBERED = 2000  # prompts
_FROM_CONFIG = ("lookahead", "pool_kernel", "chunk_size")


def settings() -> dict[str, Any]:
    """`method`, and for ablations `lookahead`, `pool_kernel`, `chunk_size`, `over_heads` and `positions`."""
    return json.loads(Path(os.environ[SETTINGS]).read_text())


def register() -> None:
    """Wrap the stage; idempotent."""
    from specprefill_sgl import stage, state

    if hasattr(stage.Stage, "quality_memo"):
        return
    stage.Stage.quality_memo = {}
    votes, run, without_draft, decide = stage.Stage.votes, stage.Stage.run, stage.Stage.without_draft, state.PromptState.decide
    layer_votes, max_votes = stage.layer_votes, stage.max_votes

    def chosen_votes(self, prompts):
        now = settings()
        key = json.dumps(now, sort_keys=True)
        memo = self.quality_memo
        if len(memo) > _REMEMBERED:
            memo.clear()
        missing = [prompt for prompt in prompts if (prompt.ids.tobytes(), key) not in memo]
        if missing and now["method"] in CONTROLS:
            control = CONTROLS[now["method"]]
            new = [_as_votes(control(stage.as_numpy(prompt.ids), self.config.chunk_size)) for prompt in missing]
        else:
            new = votes(self, missing)[0] if missing else []
        memo.update({(prompt.ids.tobytes(), key): one for prompt, one in zip(missing, new, strict=True)})
        return [memo[prompt.ids.tobytes(), key] for prompt in prompts], time.perf_counter()

    def configured(method):
        def call(self, *arguments):
            now = settings()
            changed = {name: now[name] for name in _FROM_CONFIG if name in now}
            self.quality_config = getattr(self, "quality_config", self.config)
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

    stage.Stage.votes = chosen_votes
    stage.Stage.run, stage.Stage.without_draft = configured(run), configured(without_draft)
    stage.layer_votes, stage.max_votes = over_heads, over_layers
    state.PromptState.decide = decide_positions


def mean_layer_votes(queries, keys, *, scaling: float, logit_cap: float, pool_kernel: int) -> torch.Tensor:
    """As `layer_votes`, with the mean over heads in place of the maximum (ablation; ungrouped heads, no logit cap)."""
    logits = torch.einsum("vhd,nhd->vhn", queries.float(), keys.float()) * scaling
    pooled = torch.nn.functional.avg_pool1d(logits.softmax(-1), pool_kernel, stride=1, padding=pool_kernel // 2)
    return pooled.mean(dim=1)


def _as_votes(importances) -> torch.Tensor:
    return torch.from_numpy(importances).float()[None]
