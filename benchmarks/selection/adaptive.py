"""Can the scores say how much must be kept? Thresholds on two signals, chosen on other prompts than they are judged on."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

from benchmarks.selection.measure import BEST
from benchmarks.selection.signals import NAMES

_BAD = 0.2  # nats: what a user would notice
_AGGREGATION = ("votes", "ruler_fwe")


class _Prompt(NamedTuple):
    task: str
    tokens: int
    losses: dict[float, float]  # by keep ratio; 1 is dense
    kept: dict[float, int]
    signals: dict[float, dict[str, float]]


def study(calibration: Sequence[dict], held_out: Sequence[dict]) -> str:
    """Markdown: what each signal knows, and what the best policy of two signals gives beside the best fixed ratio."""
    known, judged = _prompts(calibration), _prompts(held_out)
    if not known or not judged:
        return "Not measured."
    ratios = sorted(judged[0].losses)[:-1]
    lines = ["Rank correlation of each signal with the loss, held-out prompts:", ""]
    lines += ["| signal | " + " | ".join(f"at {ratio:g}" for ratio in ratios) + " |", "|---" * (1 + len(ratios)) + "|"]
    for name in NAMES:
        found = [spearmanr([p.signals[r][name] for p in judged], [p.losses[r] for p in judged]).statistic for r in ratios]
        lines.append(f"| {name} | " + " | ".join(f"{value:+.2f}" for value in found) + " |")
    lines += ["", "| policy | share of tokens kept | loss | prompts that lose more than 0.2 |", "|---|---|---|---|"]
    for ratio in ratios:
        lines.append(_row(f"fixed {ratio:g}", judged, [ratio] * len(judged)))
    policy = _fitted(known, ratios)
    lines.append(_row(f"two signals: {policy.name}", judged, [policy.ratio_of(p) for p in judged]))
    lines.append(_row("oracle: the smallest that loses at most 0.2", judged, [_enough(p) for p in judged]))
    recognised = [policy.ratio_of(p) == 1 for p in judged if p.task in _AGGREGATION]
    others = [policy.ratio_of(p) == 1 for p in judged if p.task not in _AGGREGATION]
    lines += [
        "",
        f"Aggregation prompts that this policy serves dense: {np.mean(recognised):.0%}; of the others {np.mean(others):.0%}.",
    ]
    return "\n".join(lines)


class _Policy(NamedTuple):
    """From the lowest ratio upward: the first at which both signals are on the good side of their thresholds; else dense."""

    name: str
    ratios: tuple[float, ...]
    limits: tuple[tuple[str, float, float], ...]  # signal, sign, threshold

    def ratio_of(self, prompt: _Prompt) -> float:
        for ratio in self.ratios:
            if all(sign * prompt.signals[ratio][name] >= limit for name, sign, limit in self.limits):
                return ratio
        return 1.0


def _fitted(prompts: Sequence[_Prompt], ratios: Sequence[float]) -> _Policy:
    """The pair of signals and thresholds that keeps least at no more loss than the middle fixed ratio, on these prompts."""
    target = _loss(prompts, [ratios[len(ratios) // 2]] * len(prompts))
    best, least = None, np.inf
    grid = {
        (name, sign): np.quantile([sign * p.signals[r][name] for p in prompts for r in ratios], np.linspace(0, 0.9, 10))
        for name in NAMES
        for sign in (1.0, -1.0)
    }
    for (one, first), (other, second) in combinations(grid.items(), 2):
        for a in first:
            for b in second:
                policy = _Policy(f"{one[0]}, {other[0]}", tuple(ratios), ((*one, float(a)), (*other, float(b))))
                chosen = [policy.ratio_of(p) for p in prompts]
                kept = _share(prompts, chosen)
                if kept < least and _loss(prompts, chosen) <= target:
                    best, least = policy, kept
    assert best is not None  # thresholds at the lowest quantile are a fixed ratio
    return best


def _prompts(rows: Sequence[dict]) -> list[_Prompt]:
    found: dict[tuple, list[dict]] = defaultdict(list)
    for row in rows:
        if row["method"] == BEST:
            found[row["task"], row["length"], row["number"]].append(row)
    result = []
    for (task, _, _), mine in sorted(found.items()):
        tokens = mine[0]["prompt_tokens"]
        losses = {row["keep_ratio"]: row["loss"] for row in mine}
        kept = {row["keep_ratio"]: row["kept"] for row in mine}
        signals = {row["keep_ratio"]: row["signals"] for row in mine}
        result.append(_Prompt(task, tokens, {**losses, 1.0: 0.0}, {**kept, 1.0: tokens}, signals))
    return result


def _enough(prompt: _Prompt) -> float:
    return min(ratio for ratio, loss in prompt.losses.items() if loss <= _BAD)


def _loss(prompts: Sequence[_Prompt], ratios: Sequence[float]) -> float:
    return float(np.mean([p.losses[ratio] for p, ratio in zip(prompts, ratios, strict=True)]))


def _share(prompts: Sequence[_Prompt], ratios: Sequence[float]) -> float:
    return float(np.mean([p.kept[ratio] / p.tokens for p, ratio in zip(prompts, ratios, strict=True)]))


def _row(name: str, prompts: Sequence[_Prompt], ratios: Sequence[float]) -> str:
    losses = np.array([p.losses[ratio] for p, ratio in zip(prompts, ratios, strict=True)])
    random = np.random.default_rng(0)
    drawn = losses[random.integers(0, len(losses), (2000, len(losses)))].mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    bad = (losses > _BAD).mean()
    return f"| {name} | {_share(prompts, ratios):.3f} | {losses.mean():+.2f} [{low:+.2f}, {high:+.2f}] | {bad:.0%} |"
