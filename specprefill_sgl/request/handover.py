"""What a prefill server tells the decode server of a request, in as many numbers as SGLang's transfer has room for.

Positions, scores and votes have none: they are in the prefill server's own reply.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from specprefill_sgl.request.backlog import Keep
from specprefill_sgl.request.eligibility import REASONS
from specprefill_sgl.request.prompts import Outcome
from specprefill_sgl.request.state import PromptState

WORDS = 8
_VERSION = 1  # of the layout and of what the indices mean
_LAYOUT = struct.Struct("<HBBiiiffff")  # in words of four bytes
_KEPT_BY = ("server", "request", "backlog")
_MARK = 1 << 62  # the highest bit that all devices' integers have room for; of a room that is nothing else, none is seen
assert _LAYOUT.size == 4 * WORDS


class Handover(NamedTuple):
    """One request: how many tokens are kept, with which ratio, and what else the reply says."""

    kept_tokens: int
    keep: Keep
    outcome: Outcome


def pack(state: PromptState | None) -> list[int]:
    """[WORDS] integers of 32 bits; all zero of a request on which nothing was decided."""
    if state is None or state.outcome is None:
        return [0] * WORDS
    outcome = state.outcome
    data = _LAYOUT.pack(
        _VERSION,
        0 if outcome.reason is None else 1 + REASONS.index(outcome.reason),
        _KEPT_BY.index(state.keep.reason),
        state.prompt_tokens - state.delta,
        outcome.draft_tokens,
        outcome.draft_cached_tokens,
        state.keep.ratio,
        outcome.tokenize_ms,
        outcome.draft_ms,
        outcome.score_ms + outcome.select_ms,
    )
    return list(struct.unpack(f"<{WORDS}i", data))


def unpack(words: Sequence[int]) -> Handover | None:
    """What they say; None if nothing was said, or by a server with another idea of it."""
    version, reason, kept_by, kept, *tokens, ratio, tokenize_ms, draft_ms, score_ms = _LAYOUT.unpack(
        struct.pack(f"<{WORDS}i", *words)
    )
    if version != _VERSION:
        return None
    outcome = Outcome(
        positions=None,
        reason=REASONS[reason - 1] if reason else None,
        tokenize_ms=tokenize_ms,
        draft_ms=draft_ms,
        score_ms=score_ms,
        draft_tokens=tokens[0],
        draft_cached_tokens=tokens[1],
        elsewhere=True,
    )
    return Handover(kept, Keep(ratio, _KEPT_BY[kept_by]), outcome)


def marked(room: int) -> int:
    """The number of a request's transfer where tokens were dropped.

    SGLang's decode side refuses a number it does not expect: so does one without this plugin, which would go on as if it had
    got the whole prompt.
    """
    return room ^ _MARK
