"""The keep ratio of a request, which may fall while others wait (docs/selection.md, Under load)."""

from typing import NamedTuple

from specprefill_sgl.config import SpecPrefillConfig
from specprefill_sgl.request.options import RequestOptions, given

_STEPS = 8  # of the keep ratio, down to nothing


class Keep(NamedTuple):
    """A keep ratio and who chose it: "server", "request" or "backlog"."""

    ratio: float
    reason: str


def keep(options: RequestOptions, config: SpecPrefillConfig, waiting: int) -> Keep:
    """The ratio of one of `waiting` requests without a decision.

    Of more than `--spec-prefill-backlog` requests, each keeps as much less as there are more of them, so that the tokens the
    target must prefill do not exceed what that many requests keep; but never less than the minimum. It falls by eighths: the
    same prompt asked again mostly has the same ratio, and finds its KV. No clock is read: ranks agree.
    """
    asked, lowest = _asked(options, config)
    if lowest >= asked.ratio or waiting <= config.backlog:
        return asked
    return Keep(max(lowest, asked.ratio * (_STEPS * config.backlog // waiting) / _STEPS), "backlog")


def may_fall(options: RequestOptions, config: SpecPrefillConfig) -> bool:
    """Whether some backlog would lower the ratio of this request."""
    asked, lowest = _asked(options, config)
    return lowest < asked.ratio


def _asked(options: RequestOptions, config: SpecPrefillConfig) -> tuple[Keep, float]:
    """Without a backlog, and what it may fall to. The server's minimum is no bound of a request's own ratio."""
    if options.keep_ratio is not None:
        return Keep(options.keep_ratio, "request"), given(options.keep_min, options.keep_ratio)
    return Keep(config.keep_ratio, "server"), given(options.keep_min, config.keep_min, config.keep_ratio)
