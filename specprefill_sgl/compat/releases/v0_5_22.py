"""SGLang 0.5.22."""

from contextlib import AbstractContextManager

_OPENAI = "sglang.srt.entrypoints.openai"

MOVED = {
    f"{_OPENAI}.serving_responses.OpenAIServingResponses._build_response": {
        "target": f"{_OPENAI}.protocol.ResponsesResponse.from_request",
        "parameters": ("cls", "request", "sampling_params"),
    },
}

_KERNELS = "sglang.kernels.ops.attention"
MODULES = {f"{_KERNELS}.linear.fused_gdn_gating": f"{_KERNELS}.fla.fused_gdn_gating"}

REFUSED = (
    (
        "--speculative-algorithm NGRAM",
        lambda a: a.speculative_algorithm == "NGRAM",
        "in SGLang 0.5.22 it drafts from coded token ids",
    ),
    (
        "--tokenizer-worker-num",
        lambda a: a.tokenizer_worker_num > 1,
        "in SGLang 0.5.22 its processes load no plugins",
    ),
)
NAMES_APP = False


def attention_ranks() -> AbstractContextManager[None]:
    """A draft that has attention runs on the ranks of the target's."""
    from sglang.srt.speculative.spec_utils import draft_tp_context

    return draft_tp_context(True)
