"""What a draft takes of a device's memory, and what a prompt takes of the target's: from configurations, nothing is loaded.

All figures are per tensor-parallel rank. `model` is SGLang's ModelConfig throughout.
"""

from pathlib import Path
from typing import Any

from specprefill_sgl import compat
from specprefill_sgl.methods import registry
from specprefill_sgl.methods.protocol import Planned
from specprefill_sgl.models.sizes import MAX_STATES, pool_tokens

_MIB = 2**20


def report(config: Any, server_args: Any) -> list[str]:
    """One line for each kind of memory of a server with these flags."""
    from sglang.srt.arg_groups.overrides import resolving_view

    args = resolving_view(server_args)
    target, ranks = compat.target_model_config(server_args), args.tp_size
    lines: list[str] = []
    for method, planned in registry.planned(config, server_args, target).items():
        if planned.weights is not None:
            lines.append(f"{method} weights: {_weights(planned.weights, ranks)}")
        lines += _reader(method, planned, config, args)
    for method, more in registry.more_memory(config, server_args, target).items():
        lines += [f"{method} {line}" for line in more]
    if state := state_bytes(target, ranks):
        lines.append(f"target recurrent state: {state / _MIB:.2f} MiB for each running request and each cached prefix")
    if reach := window(target):
        own = f", in their own pool {windowed_kv_bytes(target, ranks) / 2**10:.1f} KiB each" if target.is_hybrid_swa else ""
        lines.append(f"target sliding window: {reach} tokens{own}")
    return lines


def _reader(method: str, planned: Planned, config: Any, args: Any) -> list[str]:
    """What a method's private model takes, its weights aside."""
    model, rule, ranks = planned.model, planned.rule, args.tp_size
    tokens = pool_tokens(config, model.context_len, args.page_size or 1)
    lines = [f"{method} KV pool: {tokens} tokens, {tokens * kv_bytes(model, ranks) / _MIB:.0f} MiB"]
    if state := state_bytes(model, ranks):
        lines.append(f"{method} recurrent states: {MAX_STATES}, {MAX_STATES * state / _MIB:.0f} MiB")
    if planned.token_bytes:
        lines.append(f"{method} states of the pool's tokens: {tokens * planned.token_bytes / _MIB:.0f} MiB")
    if rule is None:
        return lines
    key_heads = ranks if compat.is_latent(model) else model.get_total_num_kv_heads()
    heads = model.num_attention_heads // key_heads  # that share a key
    scratch = 2 * (rule.window + rule.lookahead) * heads * model.context_len * 4
    return [*lines, f"{method} scoring scratch, one prompt of {model.context_len} tokens: {scratch / _MIB:.0f} MiB"]


def kv_bytes(model: Any, ranks: int) -> int:
    """Bytes of one token's keys and values in all layers that attend, windowed ones included.

    Latent attention keeps one vector of `kv_lora_rank + qk_rope_head_dim` numbers a layer, on every rank, for both.
    """
    numbers = compat.key_dim(model) if compat.is_latent(model) else _kv_numbers(model, ranks)
    return _attention_layers(model) * numbers * model.dtype.itemsize + windowed_kv_bytes(model, ranks)


def windowed_kv_bytes(model: Any, ranks: int) -> int:
    """Of that, what windowed layers keep in a pool of their own."""
    if not model.is_hybrid_swa:
        return 0
    numbers = _kv_numbers(model, ranks)
    if model.is_hybrid_swa_compress:
        heads = max(1, model.hf_text_config.swa_num_key_value_heads // ranks)
        numbers = heads * (model.swa_head_dim + model.swa_v_head_dim)
    return len(model.swa_attention_layer_ids) * numbers * model.dtype.itemsize


def state_bytes(model: Any, ranks: int) -> int:
    """Bytes of one recurrent state in all layers that have one; 0 where none has."""
    from sglang.srt.runtime_context import get_parallel

    hybrid = compat.hybrid_config(model)
    if hybrid is None:
        return 0
    widths = {"tp_size": ranks, "attn_tp_size": ranks, "attn_dp_size": 1, "attn_cp_size": 1}
    with get_parallel().override(**widths, enable_cp_tp_group_sharing=False):  # no ranks run here that SGLang could ask
        return hybrid.mamba2_cache_params.mamba_cache_per_req


def window(model: Any) -> int:
    """Tokens that windowed layers see, by the model's configuration; 0 where no layer is windowed."""
    kinds = getattr(model.hf_text_config, "layer_types", None) or ()
    return (model.sliding_window_size or 0) if model.is_hybrid_swa or "sliding_attention" in kinds else 0


def _kv_numbers(model: Any, ranks: int) -> int:
    """Numbers of one token's key and value in one layer of ordinary attention."""
    return model.get_num_kv_heads(ranks) * (model.head_dim + model.v_head_dim)


def _attention_layers(model: Any) -> int:
    """Layers that attend, but for windowed ones with a pool of their own."""
    if model.is_hybrid_swa:
        return len(model.full_attention_layer_ids)
    hybrid = compat.hybrid_config(model)
    return model.num_hidden_layers if hybrid is None else len(hybrid.full_attention_layer_ids)


def _weights(path: str, ranks: int) -> str:
    files = [file.stat().st_size for kind in ("safetensors", "bin") for file in Path(path).glob(f"*.{kind}")]
    return f"{sum(files) / ranks / _MIB:.0f} MiB in the files, per rank" if files else "not in a folder here"
