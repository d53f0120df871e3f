"""Which models can be target and draft, and how the draft's is configured. Names are those of SGLang 0.5.23.

Skip-coded ids touch only the keys of SGLang's radix tree, and positions only rotary embeddings: pools, windows, states and
sparse indices are counted in kept tokens. What is refused reads positions or ids as something else.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from specprefill_sgl.compat.options import method_refusals
from specprefill_sgl.config import ConfigError, SpecPrefillConfig, flag

# Attention backends that serve latent attention only; that serve none, or none in its absorbed form; that know no sinks.
_LATENT_ONLY = {"cutedsl_mla", "dsa", "flashmla", "nsa", "trtllm_mla"}
_NOT_ABSORBED = {"fa4", "flashinfer", "hpc_ops", "trtllm_mha"}
_NO_SINKS = {"fa4", "flashinfer"}


def target_model_config(server_args: Any) -> Any:
    """SGLang's ModelConfig of the target, for a process that has none yet."""
    from sglang.srt.configs.model_config import ModelConfig

    return ModelConfig.from_server_args(server_args)


def draft_model_config(config: SpecPrefillConfig, server_args: Any, *, target: Any) -> Any:
    """SGLang's ModelConfig of the draft, from its own files, its context cut to the target's.

    The target's `--quantization`, `--context-length` and `--json-model-override-args` are not the draft's. Layers with sliding
    windows keep their keys in the pool of the others, unless their heads have other sizes.

    Raises
    ------
    ConfigError
        If the draft's configuration cannot be read, or its heads do not divide among the tensor-parallel ranks.
    """
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.configs.model_config import ModelConfig

    args = resolving_view(server_args)
    settings = {
        "model_path": config.draft_model_path,
        "trust_remote_code": args.trust_remote_code,
        "dtype": args.dtype,
        "model_impl": args.model_impl,
    }
    try:
        draft = ModelConfig(**settings, disable_hybrid_swa_memory=True)
        if draft.is_hybrid_swa_compress:
            draft = ModelConfig(**settings)
    except Exception as error:
        raise ConfigError(f"{flag('draft_model_path')} {config.draft_model_path} cannot be read: {error}") from error
    heads, kv_heads, ranks = draft.num_attention_heads, draft.num_key_value_heads, args.tp_size // args.attn_dp_size
    if heads % ranks or max(kv_heads, ranks) % min(kv_heads, ranks):
        raise ConfigError(
            f"--tp-size {args.tp_size} cannot be used with {flag('draft_model_path')} {config.draft_model_path}: the draft's "
            f"{heads} attention heads ({kv_heads} key heads) cannot be divided among {ranks} ranks."
        )
    draft.context_len = min(draft.context_len, target.context_len)
    draft.num_nextn_predict_layers = None  # else SGLang takes the draft for its prediction head and gives it that many layers
    return draft


def first_layers_config(target: Any, count: int) -> Any:
    """SGLang's ModelConfig of a target's first layers; windowed ones keep their keys in the others' pool, as a draft's."""
    config = copy.copy(target)
    config.num_hidden_layers = config.num_attention_layers = count
    config.num_nextn_predict_layers = None
    if not config.is_hybrid_swa_compress:
        config.is_hybrid_swa, config.swa_attention_layer_ids, config.full_attention_layer_ids = False, None, None
    return config


def draft_attention_backend(server_args: Any, draft: Any) -> str | None:
    """The draft's attention backend where the server's cannot serve it; None: the server's.

    `triton` serves every kind of attention a draft may have, in pages of any size.
    """
    from sglang.srt.arg_groups.overrides import resolving_view

    args = resolving_view(server_args)
    named = {args.attention_backend, args.prefill_attention_backend, args.decode_attention_backend}
    unable = _NOT_ABSORBED if is_latent(draft) else _LATENT_ONLY
    return "triton" if named & (unable | (_NO_SINKS if draft.has_attention_sinks else set())) else None


def hybrid_config(model: Any) -> Any | None:
    """The part of a ModelConfig that describes layers with a recurrent state; None where it has none."""
    from sglang.srt.configs.hybrid_arch import mambaish_config

    return mambaish_config(model)


def cannot_resume(server_args: Any, reader: Any) -> str | None:
    """The option with which a reader, a ModelConfig, has no prompt in its prefix cache (`models.prefix_cache`); None else."""
    from sglang.srt.arg_groups.overrides import resolving_view

    page = resolving_view(server_args).page_size or 1
    return f"--page-size {page}" if page > 1 and hybrid_config(reader) is not None else None


def is_latent(model: Any) -> bool:
    """Whether a ModelConfig's attention is latent (MLA)."""
    from sglang.srt.configs.model_config import AttentionArch

    return model.attention_arch == AttentionArch.MLA


def absorb_latents(backend: str) -> None:
    """Have latent attention (MLA) under this name of an attention backend attend in the latent space, whatever the prompt.

    SGLang expands latents where that is cheaper, and under names that it does not know.
    """
    from sglang.srt.models.deepseek_common import attention_backend_handler as handler

    handler.AttentionBackendRegistry.register(backend, handler._dispatch_mla_subtype)


def key_dim(model: Any) -> int:
    """Numbers of one key as the pool of a ModelConfig's attention layers holds it: a latent one's are the absorbed form's."""
    return model.kv_lora_rank + model.qk_rope_head_dim if is_latent(model) else model.head_dim


def never_run(target: Any) -> bool:
    """Whether a target is accepted from reading SGLang's source alone: its attention runs on GPUs only."""
    return _is_sparse(target)


def check_target(model: Any) -> None:
    """Refuse a target, a ModelConfig, whose attention Speculative Prefill does not understand.

    Raises
    ------
    ConfigError
        One sentence with the reason.
    """
    _refuse(model, "--spec-prefill cannot serve this target model (--model-path)", _REFUSED)


def check_draft(model: Any) -> None:
    """The same of a draft, which must also see the whole prompt."""
    what = f"--spec-prefill cannot serve this draft model ({flag('draft_model_path')})"
    _refuse(model, what, (*_REFUSED, *_REFUSED_DRAFTS))


def first_layers_refusals(server_args: Any, method: str = "early-layers") -> Iterator[str]:
    """A sentence for each option of a server beside which a target's first layers cannot run, for a method that needs them."""
    return method_refusals(method, _REFUSED_BESIDE_FIRST_LAYERS, server_args)


def check_first_layers(model: Any) -> None:
    """Refuse a target, a ModelConfig, whose first layers cannot read.

    Raises
    ------
    ConfigError
        One sentence with the reason.
    """
    _refuse(model, "--spec-prefill-method early-layers cannot read with this target", _REFUSED_DRAFTS)


def check_predicted_target(model: Any) -> None:
    """Refuse a ModelConfig whose keys and values cannot be those of a linear map (kv-prediction), or cannot feed one.

    Raises
    ------
    ConfigError
        One sentence with the reason.
    """
    _refuse(model, f"--spec-prefill-method kv-prediction cannot serve {model.model_path}", _REFUSED_PREDICTED)


def check_handover(server_args: Any, model: Any) -> None:
    """Refuse a target, a ModelConfig, of which a prefill server hands over more than the KV of tokens.

    Raises
    ------
    ConfigError
        One sentence that names the option and the reason.
    """
    if (mode := server_args.disaggregation_mode) != "null":
        what = f"--spec-prefill with --disaggregation-mode {mode} cannot serve this target model (--model-path)"
        _refuse(model, what, _REFUSED_HANDOVERS)


def _refuse(model: Any, what: str, reasons: tuple[tuple[Callable[[Any], bool], str], ...]) -> None:
    for holds, why in reasons:
        if holds(model):
            raise ConfigError(f"{what}: {why}.")


def _is_sparse(model: Any) -> bool:
    from sglang.srt.configs.model_config import is_deepseek_dsa, is_minimax_sparse

    return is_deepseek_dsa(model.hf_config) or is_minimax_sparse(model.hf_config)


def _is_deepseek_v4(model: Any) -> bool:
    from sglang.srt.configs.model_config import is_deepseek_v4

    return is_deepseek_v4(model.hf_config)


def _is_qsa(model: Any) -> bool:
    from sglang.srt.configs.model_config import is_qwen4_exp
    from sglang.srt.layers.attention.qsa.config import is_qwen_qsa

    return is_qwen4_exp(model.hf_config) or is_qwen_qsa(model.hf_config)


def _pools_indices(model: Any) -> bool:
    from sglang.srt.configs.hybrid_arch import glm5_next_config
    from sglang.srt.configs.model_config import get_dsa_index_kpool

    return get_dsa_index_kpool(model.hf_config) > 1 or glm5_next_config(model) is not None


def _is_ssm(model: Any) -> bool:
    from sglang.srt.configs.model_config import AttentionArch

    return model.attention_arch == AttentionArch.SSM


def _is_inkling(model: Any) -> bool:
    return (model.hf_config.architectures or [""])[0].startswith("Inkling")


def _hashes_ngrams(model: Any) -> bool:
    return model.use_ngram_embedding or model.use_engram


def _is_dual_chunk(model: Any) -> bool:
    return hasattr(model.hf_config, "dual_chunk_attention_config")


# (whether it holds of a ModelConfig, why such a model is refused)
_REFUSED: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda model: not model.is_generation, "it does not generate"),
    (lambda model: model.is_encoder_decoder, "an encoder reads the whole prompt"),
    (_is_ssm, "it has no attention layer, so nothing says which tokens matter or tells their positions"),
    (_is_deepseek_v4, "DeepSeek V4 compresses keys by position"),
    (_is_qsa, "Qwen's sparse attention (QSA) reads positions as KV indices"),
    (_pools_indices, "its pooled sparse index (index_kpool) reads positions as KV indices"),
    (_is_inkling, "Inkling tells sequences apart by their positions"),
    (_hashes_ngrams, "n-gram embeddings hash neighbouring tokens, which dropping changes"),
    (_is_dual_chunk, "dual chunk attention reads positions as KV indices"),
    (lambda model: model.is_local_attention_model, "its chunked attention cuts by sequence length, not by position"),
)

_REFUSED_DRAFTS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (_is_sparse, "a sparse index sees what it chose only, so it cannot score a prompt"),
)

_REFUSED_PREDICTED: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (is_latent, "latent attention (MLA) keeps no keys and values of heads"),
    (lambda model: hybrid_config(model) is not None, "recurrent states are not predicted"),
    (lambda model: bool(model.is_hybrid_swa), "sliding windows keep their keys in a pool of their own"),
    (_is_sparse, "the keys of a sparse index are not predicted"),
    (lambda model: model.is_multimodal, "its positions may have three dimensions"),
)

# What SGLang transfers beside KV lies where the decode side expects it by the prompt's length, not by the kept tokens.
_REFUSED_HANDOVERS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda model: hybrid_config(model) is not None, "recurrent states are handed over in a way that was not tested"),
    (lambda model: bool(model.is_hybrid_swa), "the end of a sliding window is handed over by the prompt's length"),
    (_is_sparse, "a sparse index is handed over by the prompt's length"),
)

# (flag, whether it is on once SGLang has resolved all flags, why a target's first layers cannot run beside it)
_REFUSED_BESIDE_FIRST_LAYERS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("--enable-lora", lambda a: a.enable_lora, "LoRA wraps the layers that both share"),
    (
        "--enable-return-routed-experts",
        lambda a: a.enable_return_routed_experts,
        "a private runner switches the trace off",
    ),
    ("--enable-two-batch-overlap", lambda a: a.enable_two_batch_overlap, "it splits the layers that both share"),
    ("--pp-size", lambda a: a.pp_size > 1, "the first stage has no end of the model"),
    ("--attn-dp-size", lambda a: a.attn_dp_size > 1, "they run in step with those of other ranks"),
)
