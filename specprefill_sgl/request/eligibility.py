"""Why a request cannot be sparse; the reason is part of the reply (docs/reference.md, The reply object)."""

from typing import Any

from specprefill_sgl.config import SpecPrefillConfig
from specprefill_sgl.request.options import RequestOptions

OPTED_OUT = "disabled_by_request"
TOO_SHORT = "below_min_tokens"
MULTIMODAL = "multimodal_input"
INPUT_EMBEDS = "input_embeds"
PROMPT_LOGPROBS = "prompt_logprobs"
HIDDEN_STATES = "hidden_states"
SESSION = "session"
BEAM_SEARCH = "beam_search"
LOGIT_PROCESSOR = "custom_logit_processor"
SCORING = "embedding_or_score"
EXPERT_TRACE = "per_token_trace"
ABORTED = "aborted"
PREFIX_CACHED = "prefix_cached"
DRAFT_CONTEXT = "exceeds_draft_context"
DRAFT_POOL = "exceeds_draft_pool"
DRAFT_VOCABULARY = "token_outside_draft_vocabulary"
DRAFT_TEXT = "no_text_for_the_draft"
DRAFT_ERROR = "draft_error"
PREDICTION_EVICTED = "prediction_evicted"
PREDICTOR_OUTDATED = "predictor_outdated"
AUX_CACHE = "exceeds_aux_cache"
REASONS = (
    *(OPTED_OUT, TOO_SHORT, MULTIMODAL, INPUT_EMBEDS, PROMPT_LOGPROBS, HIDDEN_STATES, SESSION, BEAM_SEARCH, LOGIT_PROCESSOR),
    *(SCORING, EXPERT_TRACE, ABORTED, PREFIX_CACHED, DRAFT_CONTEXT, DRAFT_POOL, DRAFT_VOCABULARY, DRAFT_TEXT, DRAFT_ERROR),
    *(PREDICTION_EVICTED, PREDICTOR_OUTDATED, AUX_CACHE),
)


def dense_reason(req: Any, options: RequestOptions, config: SpecPrefillConfig) -> str | None:
    """The first reason why an SGLang `Req` must be prefilled dense, or None.

    Only properties of the request count: what the draft can hold is the stage's concern.
    """
    prompt_tokens = len(req.origin_input_ids)
    min_tokens = config.min_tokens if options.min_tokens is None else options.min_tokens
    reasons = (
        (OPTED_OUT, options.enabled is False),
        (ABORTED, req.finished() or req.to_finish is not None),
        (MULTIMODAL, req.multimodal_inputs is not None),
        (INPUT_EMBEDS, req.input_embeds is not None or req.positional_embed_overrides is not None),
        (SESSION, req.session is not None),
        (BEAM_SEARCH, req.beam_group is not None),
        (LOGIT_PROCESSOR, req.custom_logit_processor is not None),
        (SCORING, _is_scoring(req)),
        (PROMPT_LOGPROBS, req.return_logprob and 0 <= req.logprob_start_len < prompt_tokens),
        (HIDDEN_STATES, bool(req.return_hidden_states) or req.return_pooled_hidden_states),
        (EXPERT_TRACE, req.return_routed_experts or req.return_indexer_topk),
        (TOO_SHORT, prompt_tokens < max(min_tokens, 1)),
    )
    return next((reason for reason, holds in reasons if holds), None)


def is_text(req: Any) -> bool:
    """Whether an SGLang `Req`'s ids are what is prefilled, and all of it."""
    embeds = req.input_embeds is not None or req.positional_embed_overrides is not None
    return req.multimodal_inputs is None and not embeds and req.session is None


def _is_scoring(req: Any) -> bool:
    """Requests that read the prompt instead of continuing it.

    A request for no tokens and no logprobs stays eligible: SGLang sends one ahead of `n > 1` to fill the radix cache.
    """
    return (
        (req.is_prefill_only and req.return_logprob)
        or req.multi_item_delimiter_indices is not None
        or req.token_indices_to_pool is not None
        or req.decision_layout is not None
        or req.token_type_ids is not None
    )
