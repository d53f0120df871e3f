"""What the method lazy does not go with: it runs the target's layers in parts, over rows of the request table of its own."""

from collections.abc import Callable, Iterator
from typing import Any

from specprefill_sgl.compat.options import method_refusals
from specprefill_sgl.config import ConfigError

_BACKENDS = ("torch_native", "triton")
_MODELS = ("LlamaForCausalLM", "Qwen3ForCausalLM")

# (flag, whether it is on once SGLang has resolved all flags, why)
_REFUSED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("--enable-mixed-chunk", lambda a: a.enable_mixed_chunk, "decodes inside an extend were not run with it"),
    ("--speculative-algorithm", lambda a: a.speculative_algorithm is not None, "drafts do not know which tokens are dropped"),
    ("--pp-size", lambda a: a.pp_size > 1, "it is a pipeline on one rank already"),
    ("--attn-dp-size", lambda a: a.attn_dp_size > 1, "ranks with other batches would not run as many parts"),
    ("--disaggregation-mode", lambda a: a.disaggregation_mode != "null", "what each layer lacks is not handed over"),
    ("--enable-lora", lambda a: a.enable_lora, "adapters of batches in parts were not run"),
    ("--enable-two-batch-overlap", lambda a: a.enable_two_batch_overlap, "it splits batches too"),
    ("--enable-return-hidden-states", lambda a: a.enable_return_hidden_states, "only some tokens reach the last layer"),
    ("--enable-return-routed-experts", lambda a: a.enable_return_routed_experts, "only some tokens reach the last layer"),
    ("--enable-hierarchical-cache", lambda a: a.enable_hierarchical_cache, "it was not run with it"),
    ("--kv-cache-dtype", lambda a: a.kv_cache_dtype != "auto", "keys are scored as they lie in the pool"),
    ("--page-size", lambda a: (a.page_size or 1) > 1, "the later layers' rows are lists of single tokens"),
)


def lazy_refusals(server_args: Any) -> Iterator[str]:
    """A sentence for each option of a server that the method does not go with."""
    from sglang.srt.arg_groups.overrides import resolving_view

    yield from method_refusals("lazy", _REFUSED, server_args)
    args = resolving_view(server_args)
    for name in ("attention_backend", "prefill_attention_backend", "decode_attention_backend"):
        if (backend := getattr(args, name)) not in (None, *_BACKENDS):
            flag = f"--{name.replace('_', '-')} {backend}"
            yield f"--spec-prefill-method lazy cannot be combined with {flag}: it was run with {' and '.join(_BACKENDS)}."


def check_lazy(model: Any) -> None:
    """Refuse a target, a ModelConfig, that was not run in parts.

    Raises
    ------
    ConfigError
        Names its architecture.
    """
    (name, *_) = model.hf_config.architectures
    if name not in _MODELS:
        raise ConfigError(f"--spec-prefill-method lazy cannot run this target, {name}: known are {', '.join(_MODELS)}.")
    if getattr(model, "sliding_window_size", None):
        raise ConfigError("--spec-prefill-method lazy cannot run this target: its layers have sliding windows.")
