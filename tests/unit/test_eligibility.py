"""Reasons for a dense prefill, on SGLang's own request object."""

from array import array
from types import SimpleNamespace

import pytest

from specprefill_sgl.config import SpecPrefillConfig
from specprefill_sgl.hooks import decisions
from specprefill_sgl.request.eligibility import dense_reason
from specprefill_sgl.request.options import RequestOptions
from specprefill_sgl.request.state import state_of

CONFIG = SpecPrefillConfig(draft_model_path="d", min_tokens=4)


@pytest.fixture
def req(published):
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    return Req(rid="r", origin_input_text="", origin_input_ids=array("q", range(8)), sampling_params=SamplingParams())


def test_an_ordinary_request_is_eligible(req):
    assert dense_reason(req, RequestOptions(), CONFIG) is None


def test_threshold_of_server_and_request(req):
    assert dense_reason(req, RequestOptions(min_tokens=9), CONFIG) == "below_min_tokens"
    assert dense_reason(req, RequestOptions(min_tokens=8), SpecPrefillConfig(draft_model_path="d")) is None


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"multimodal_inputs": object()}, "multimodal_input"),
        ({"input_embeds": [[0.0]]}, "input_embeds"),
        ({"positional_embed_overrides": object()}, "input_embeds"),
        ({"session": object()}, "session"),
        ({"beam_group": object()}, "beam_search"),
        ({"custom_logit_processor": "x"}, "custom_logit_processor"),
        ({"multi_item_delimiter_indices": [1]}, "embedding_or_score"),
        ({"token_indices_to_pool": [1]}, "embedding_or_score"),
        ({"return_logprob": True, "logprob_start_len": 0}, "prompt_logprobs"),
        ({"return_hidden_states": True}, "hidden_states"),
        ({"return_routed_experts": True}, "per_token_trace"),
        ({"to_finish": object()}, "aborted"),
    ],
)
def test_reasons(req, attributes, reason):
    for name, value in attributes.items():
        assert hasattr(req, name), f"SGLang's Req has no {name} any more"
        setattr(req, name, value)
    assert dense_reason(req, RequestOptions(), CONFIG) == reason


def test_output_logprobs_stay_eligible(req):
    req.return_logprob, req.logprob_start_len = True, len(req.origin_input_ids)
    assert dense_reason(req, RequestOptions(), CONFIG) is None


def test_bad_fields_from_an_unchecked_front_end_abort_the_request(req):
    """They must not raise in the scheduler, which would end the server."""
    req.sampling_params.custom_params = {"spec_prefill_keep_ratio": 7}
    from sglang.srt.runtime_context import get_parallel

    fetched: list = []
    scheduler = SimpleNamespace(
        metrics_reporter=SimpleNamespace(current_scheduler_metrics_enabled=False), _prefetch_kvcache=fetched.append
    )
    with get_parallel().override(tp_rank=0):
        draft = SimpleNamespace(adapted=lambda rule: rule)
        decisions.see(scheduler, req, SimpleNamespace(config=CONFIG, methods={"draft": draft}, may_revive=False))
    assert "spec_prefill_keep_ratio" in req.to_finish.message
    assert state_of(req).outcome.reason == "aborted"
    assert fetched == [req]
