"""The keep ratio of a request, which may fall while others wait (README, Under load)."""

from typing import NamedTuple

from specprefill_sgl.config import SpecPrefillConfig
from specprefill_sgl.request.options import RequestOptions


class Keep(NamedTuple):
    """A keep ratio and who chose it: "server", "request" or "backlog"."""

    ratio: float
    reason: str


def keep(options: RequestOptions, config: SpecPrefillConfig, waiting: int) -> Keep:
    """The ratio of one of `waiting` requests without a decision.

    Of more than `--spec-prefill-backlog` requests, each keeps as much less as there are more of them, so that the tokens the
    target must prefill stay what that many requests keep; but never less than the minimum. No clock is read: ranks agree.
    """
    asked = Keep(config.keep_ratio, "server") if options.keep_ratio is None else Keep(options.keep_ratio, "request")
    lowest = config.keep_min if options.keep_min is None else options.keep_min
    if lowest is None or lowest >= asked.ratio or waiting <= config.backlog:
        return asked
    return Keep(max(lowest, asked.ratio * config.backlog / waiting), "backlog")
