"""The reply object `meta_info["spec_prefill"]` (docs/reference.md, The reply object)."""

from typing import Any

from specprefill_sgl.request.prompts import Outcome
from specprefill_sgl.request.state import PromptState

KEY = "spec_prefill"


def reply_object(state: PromptState, *, final: bool) -> dict[str, Any]:
    """Plain values for one request.

    Parameters
    ----------
    state : PromptState
        Of a request whose outcome is decided.
    final : bool
        Whether this is the request's last output; lists are sent only with that one.
    """
    outcome = state.outcome
    assert outcome is not None
    applied = outcome.reason is None
    kept_tokens = state.kept_by_layer[-1][1] if state.kept_by_layer else state.prompt_tokens - state.delta
    reply: dict[str, Any] = {
        "applied": applied,
        "reason": outcome.reason,
        "method": state.method if applied else None,
        "prompt_tokens": state.prompt_tokens,
        "kept_tokens": kept_tokens,
        "predicted_tokens": state.predicted,
        "keep_ratio": kept_tokens / max(state.prompt_tokens, 1),
        "keep_ratio_used": state.keep.ratio,
        "keep_ratio_reason": state.keep.reason,
        "draft_tokens": outcome.draft_tokens,
        "draft_cached_tokens": outcome.draft_cached_tokens,
        "kept_by_layer": [list(one) for one in state.kept_by_layer] or None,
        "backfilled": state.backfilled,
        "revived_tokens": sum(tokens for _, tokens in state.revived),
        "tokenize_ms": round(outcome.tokenize_ms, 3),
        "draft_ms": round(outcome.draft_ms, 3),
        "score_ms": round(outcome.score_ms + outcome.select_ms, 3),
    }
    if final:
        reply |= {"asked_after": state.asked, "revived_after": [said for said, _ in state.revived]}
    return reply | _lists(state, outcome) if final else reply


def _lists(state: PromptState, outcome: Outcome) -> dict[str, Any]:
    """What a request asked to see; null where another server has it."""
    options, lists = state.options, {}
    wanted = {"positions": options.return_positions, "scores": options.return_scores, "votes": options.return_votes}
    if outcome.elsewhere:
        return dict.fromkeys(name for name, is_wanted in wanted.items() if is_wanted)
    if options.return_positions:
        kept = outcome.positions
        lists["positions"] = kept.tolist() if kept is not None else list(range(state.prompt_tokens))
    if options.return_scores and outcome.scores is not None:
        lists |= {"scores": outcome.scores.tolist(), "chunk_size": state.rule.chunk_size}
    if options.return_votes and outcome.votes is not None:
        votes = outcome.votes
        lists["votes"] = {"tokens": votes.tokens, "positions": votes.positions, "chunks": votes.chunks.tolist()}
    return lists
