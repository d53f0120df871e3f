"""The only place that knows SGLang's releases: tested versions, names of its options and what of it cannot be combined.

Option names and attributes are those of SGLang 0.5.23.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from specprefill_sgl.config import ConfigError, SpecPrefillConfig, flag

TESTED_SGLANG = ("0.5.23",)

# Attention backends that read token positions as KV indices, or select KV themselves; names after resolution, by which
# SGLang calls `compressed` `dsv4`.
_UNSUPPORTED_BACKENDS = {
    "dsa", "dsv4", "llada2_cfg_flashinfer", "minicpm_flashattn", "minicpm_flashinfer", "nsa", "qsa",
}  # fmt: skip

# (flag as the user typed it, whether it is on once SGLang has resolved all flags, why it cannot be combined)
_REJECTED_OPTIONS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("--speculative-algorithm", lambda a: a.speculative_algorithm is not None, "its drafts derive positions from lengths"),
    ("--disaggregation-mode", lambda a: a.disaggregation_mode != "null", "the decode side does not know the positions"),
    (
        "--attn-dp-size (--enable-dp-attention)",  # SGLang resolves the older flag into the newer
        lambda a: a.attn_dp_size > 1,
        "idle ranks would not join the draft's collectives",
    ),
    ("--pp-size", lambda a: a.pp_size > 1, "every stage would need the selection"),
    ("--dcp-size", lambda a: a.dcp_size > 1, "it reads positions as KV indices"),
    ("--attn-cp-size", lambda a: a.attn_cp_size > 1, "it reads positions as KV indices"),
    ("--enable-mis", lambda a: a.enable_mis, "it rewrites positions"),
    ("--dllm-algorithm", lambda a: a.dllm_algorithm is not None, "diffusion models do not prefill causally"),
    ("--enable-hisparse", lambda a: a.enable_hisparse, "it reads positions as KV indices"),
    ("--enable-hierarchical-cache", lambda a: a.enable_hierarchical_cache, "coded token ids are not tested with it"),
    ("--hicache-storage-backend", lambda a: a.hicache_storage_backend is not None, "it hashes token ids as 32 bits"),
    ("--enable-unified-cache-external-linker", lambda a: a.enable_unified_cache_external_linker, "it sees token ids"),
    ("--kv-events-config", lambda a: a.kv_events_config is not None, "it publishes token ids"),
    ("--enable-lmcache", lambda a: a.enable_lmcache, "it hashes token ids"),
    ("--enable-flexkv", lambda a: a.enable_flexkv, "it hashes token ids"),
    ("--radix-cache-backend", lambda a: a.radix_cache_backend is not None, "it may truncate coded token ids"),
    ("--kv-canary", lambda a: a.kv_canary not in (None, "none", "off"), "it checks KV against plain token ids"),
    ("--enable-streaming-session", lambda a: a.enable_streaming_session, "a session's KV is indexed by its own prompt"),
    ("--enable-pdmux", lambda a: a.enable_pdmux, "it runs prefill and decode on other streams"),
    ("--elastic-ep-backend", lambda a: a.elastic_ep_backend is not None, "ranks may leave while a draft runs"),
    ("--enable-memory-saver", lambda a: a.enable_memory_saver, "a released draft would not be restored"),
    ("--encoder-only", lambda a: a.encoder_only, "there is nothing to prefill"),
    ("--is-embedding", lambda a: bool(a.is_embedding), "embeddings need every token"),
    ("--enable-watermark", lambda a: a.enable_watermark, "it hashes token ids"),
    ("--smg-grpc-mode", lambda a: a.smg_grpc_mode, "its front end does not check request fields"),
    ("--tokenizer-worker-num", lambda a: a.tokenizer_worker_num > 1, "its worker processes load no plugins"),
)  # fmt: skip

_REJECTED_ENVIRONMENT = {
    "SGLANG_RUST_SERVER": "the Rust front end loads no plugins",
    "SGLANG_USE_HND_KVCACHE": "it stores keys page by page, which scoring does not read",
}


def check_version() -> None:
    """Refuse a release of SGLang whose internals were not tested."""
    installed = version("sglang")
    if installed not in TESTED_SGLANG:
        raise ConfigError(f"--spec-prefill is tested with sglang {', '.join(TESTED_SGLANG)}, not with {installed}.")


def check_server_options(server_args: Any) -> None:
    """Refuse server options that Speculative Prefill cannot be combined with (README, Flags).

    Raises
    ------
    ConfigError
        Names the first such flag.
    """
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.environ import envs

    args = resolving_view(server_args)
    for name, is_on, why in _REJECTED_OPTIONS:
        if is_on(args):
            raise ConfigError(f"--spec-prefill cannot be combined with {name}: {why}.")
    for name in ("attention_backend", "prefill_attention_backend", "decode_attention_backend"):
        if getattr(args, name) in _UNSUPPORTED_BACKENDS:
            spelled = "--" + name.replace("_", "-")
            raise ConfigError(
                f"--spec-prefill cannot be combined with {spelled} {getattr(args, name)}: it reads positions as KV indices."
            )
    for name, why in _REJECTED_ENVIRONMENT.items():
        if getattr(envs, name).get():
            raise ConfigError(f"--spec-prefill cannot be combined with {name}: {why}.")


def target_model_config(server_args: Any) -> Any:
    """SGLang's ModelConfig of the target, for a process that has none yet."""
    from sglang.srt.configs.model_config import ModelConfig

    return ModelConfig.from_server_args(server_args)


def draft_model_config(config: SpecPrefillConfig, server_args: Any, *, target: Any) -> Any:
    """SGLang's ModelConfig of the draft, from its own files, its context cut to the target's.

    The target's `--quantization`, `--context-length` and `--json-model-override-args` are not the draft's.

    Raises
    ------
    ConfigError
        If the draft's configuration cannot be read, or its heads do not divide among the tensor-parallel ranks.
    """
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.configs.model_config import ModelConfig

    args = resolving_view(server_args)
    try:
        draft = ModelConfig(
            model_path=config.draft_model_path,
            trust_remote_code=args.trust_remote_code,
            dtype=args.dtype,
            model_impl=args.model_impl,
        )
    except Exception as error:
        raise ConfigError(f"{flag('draft_model_path')} {config.draft_model_path} cannot be read: {error}") from error
    heads, kv_heads, ranks = draft.num_attention_heads, draft.num_key_value_heads, args.tp_size
    if heads % ranks or max(kv_heads, ranks) % min(kv_heads, ranks):
        raise ConfigError(
            f"--tp-size {ranks} cannot be used with {flag('draft_model_path')} {config.draft_model_path}: the draft's {heads} "
            f"attention heads ({kv_heads} key heads) cannot be divided among the ranks."
        )
    draft.context_len = min(draft.context_len, target.context_len)
    return draft


def check_models(target: Any, draft: Any) -> None:
    """Refuse models whose attention Speculative Prefill does not understand.

    Raises
    ------
    ConfigError
        One sentence that names the model's role and the reason.
    """
    from sglang.srt.configs.hybrid_arch import mambaish_config
    from sglang.srt.configs.model_config import AttentionArch, is_deepseek_dsa, is_minimax_sparse

    for role, model in (("target model (--model-path)", target), (f"draft model ({flag('draft_model_path')})", draft)):
        if not model.is_generation:
            raise ConfigError(f"--spec-prefill needs a generative {role}.")
        if model.is_encoder_decoder:
            raise ConfigError(f"--spec-prefill does not support an encoder-decoder {role}.")
        if mambaish_config(model) is not None or model.attention_arch == AttentionArch.SSM:
            raise ConfigError(f"--spec-prefill does not support linear attention in the {role}.")
        if model.is_hybrid_swa:
            raise ConfigError(f"--spec-prefill does not support a sliding-window KV pool in the {role}.")
        if is_deepseek_dsa(model.hf_config) or is_minimax_sparse(model.hf_config) or model.is_local_attention_model:
            raise ConfigError(f"--spec-prefill does not support sparse or chunked attention in the {role}.")
        if model.use_ngram_embedding or model.use_engram or hasattr(model.hf_config, "dual_chunk_attention_config"):
            raise ConfigError(f"--spec-prefill does not support n-gram embeddings or dual chunk attention in the {role}.")
    if draft.attention_arch != AttentionArch.MHA:
        raise ConfigError(f"{flag('draft_model_path')} must be a model with ordinary attention, not latent attention.")
