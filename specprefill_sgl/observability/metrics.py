"""Counts of what Speculative Prefill did: always in `/server_info`, and for Prometheus with `--enable-metrics`."""

from collections import Counter
from typing import Any

from specprefill_sgl.request.prompts import Outcome

_RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0)


class Metrics:
    """Counters of one scheduler.

    Parameters
    ----------
    labels : dict[str, str] or None
        SGLang's own metric labels; None where this process exports no metrics.
    """

    def __init__(self, labels: dict[str, str] | None):
        self.requests: Counter[tuple[str, str]] = Counter()
        self.tokens: Counter[str] = Counter()
        self.draft_tokens: Counter[str] = Counter()
        self.revivals: Counter[str] = Counter()
        self.backfills: Counter[str] = Counter()
        self._prometheus = None if labels is None else _Prometheus(labels)

    def decided(self, outcome: Outcome, prompt_tokens: int, method: str) -> None:
        """One request, once, when its outcome is known; of a dense one no method is counted."""
        how, reason = ("dense", outcome.reason or "") if outcome.positions is None else ("sparse", "")
        kept = prompt_tokens if outcome.positions is None else len(outcome.positions)
        tokens = {
            "kept": kept - outcome.cached_tokens - outcome.predicted,
            "dropped": prompt_tokens - kept,
            "cached": outcome.cached_tokens,
            "predicted": outcome.predicted,
        }
        self.requests[how, reason] += 1
        self.tokens.update(tokens)
        if self._prometheus is not None:
            self._prometheus.decided(how, reason, method if how == "sparse" else "", tokens, kept / max(prompt_tokens, 1))

    def drafted(self, outcomes: list[Outcome], method: str) -> None:
        """One group of requests that shared a draft; each has its own tokens, if they are not the target's."""
        first = outcomes[0]
        cached = sum(one.draft_cached_tokens for one in outcomes)
        self.draft_tokens.update({"cached": cached, "read": sum(one.draft_tokens for one in outcomes) - cached})
        if self._prometheus is not None:
            stages = [("draft", first.draft_ms), ("score", first.score_ms), ("select", first.select_ms)]
            stages += [("tokenize", one.tokenize_ms) for one in outcomes if one.tokenize_ms]
            self._prometheus.drafted(stages, method, cached)

    def reconsidered(self, outcome: str, tokens: int = 0) -> None:
        """One answer asked what it lacks: `revived` so many tokens, `nothing`, or `evicted`: its reader has lost the prompt."""
        self.revivals[outcome] += 1
        self.tokens["revived"] += tokens
        if self._prometheus is not None:
            self._prometheus.reconsidered(outcome, tokens)

    def backfilled(self, outcome: str) -> None:
        """One sparse prompt that was to be prefilled whole, once nothing more is done for it.

        `complete`: for the turn that may follow; `exact`: its own answer went on with it; `cancelled` with its request; `lost`:
        evicted as it was computed; `displaced` by later ones.
        """
        self.backfills[outcome] += 1
        if self._prometheus is not None:
            self._prometheus.backfilled(outcome)

    def backfilled_tokens(self, tokens: int) -> None:
        """A piece was prefilled."""
        self.tokens["backfilled"] += tokens
        if self._prometheus is not None:
            self._prometheus.backfilled_tokens.inc(tokens)

    def pool(self, used: int) -> None:
        """Slots of the draft's KV pool in use, cached prompts included."""
        if self._prometheus is not None:
            self._prometheus.pool_used.set(used)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `/server_info`."""
        requests = {how if not reason else f"{how}:{reason}": count for (how, reason), count in sorted(self.requests.items())}
        tokens = {"prompt_tokens": dict(self.tokens), "draft_tokens": dict(self.draft_tokens)}
        return {"requests": requests, **tokens, "revivals": dict(self.revivals), "backfills": dict(self.backfills)}


class _Prometheus:
    def __init__(self, labels: dict[str, str]):
        # SGLang sets PROMETHEUS_MULTIPROC_DIR first, so this must not be imported earlier
        from prometheus_client import Counter as PrometheusCounter
        from prometheus_client import Gauge, Histogram

        self._labels = labels
        names = list(labels)
        prefix = "sglang:spec_prefill_"
        self._requests = PrometheusCounter(
            prefix + "requests_total", "Requests by what Speculative Prefill did.", [*names, "outcome", "reason", "method"]
        )
        self._tokens = PrometheusCounter(
            prefix + "prompt_tokens_total", "Prompt tokens by what happened to them.", [*names, "disposition"]
        )
        self._draft_cached = PrometheusCounter(
            prefix + "draft_cached_tokens_total", "Prompt tokens found in the draft's prefix cache.", names
        ).labels(**labels)
        self._revivals = PrometheusCounter(
            prefix + "revivals_total", "Answers asked what they lack, by what became of it.", [*names, "outcome"]
        )
        self._backfills = PrometheusCounter(
            prefix + "backfills_total", "Dropped tokens prefilled after all, by what became of it.", [*names, "outcome"]
        )
        self.backfilled_tokens = PrometheusCounter(
            prefix + "backfill_tokens_total", "Prompt tokens prefilled when there was time.", names
        ).labels(**labels)
        self._keep_ratio = Histogram(
            prefix + "keep_ratio", "Fraction of a sparse prompt that was kept.", names, buckets=_RATIOS
        ).labels(**labels)
        self._seconds = Histogram(
            prefix + "stage_seconds", "Seconds of a speculation batch, by stage.", [*names, "stage", "method"], buckets=_SECONDS
        )
        self.pool_used = Gauge(
            prefix + "draft_pool_used_tokens",
            "Slots of the draft's KV pool in use, cached prompts included.",
            names,
            multiprocess_mode="mostrecent",
        ).labels(**labels)

    def decided(self, how: str, reason: str, method: str, tokens: dict[str, int], keep_ratio: float) -> None:
        self._requests.labels(**self._labels, outcome=how, reason=reason, method=method).inc()
        for disposition, count in tokens.items():
            self._tokens.labels(**self._labels, disposition=disposition).inc(count)
        if how == "sparse":
            self._keep_ratio.observe(keep_ratio)

    def reconsidered(self, outcome: str, tokens: int) -> None:
        self._revivals.labels(**self._labels, outcome=outcome).inc()
        self._tokens.labels(**self._labels, disposition="revived").inc(tokens)

    def backfilled(self, outcome: str) -> None:
        self._backfills.labels(**self._labels, outcome=outcome).inc()

    def drafted(self, stages: list[tuple[str, float]], method: str, cached: int) -> None:
        self._draft_cached.inc(cached)
        for stage, milliseconds in stages:
            self._seconds.labels(**self._labels, stage=stage, method=method).observe(milliseconds / 1e3)
