"""`torch_native` attention of the CPU platform: SGLang 0.5.23's own, where that is right and quick.

It ignores `layer.logit_cap` (Gemma 2 and its like), which answers wrongly, and its cap of the final logits is a Triton kernel
on every out-of-tree platform, which fails. In decodes with grouped query heads torch copies every key for each of its heads.
What extends a prefix attends from the prefix again and drops that: with chunked prefill the cost grows with the cube of the
prompt, and a cached prefix saves nothing.
"""

import torch
from sglang.srt.layers.attention.attention_registry import register_attention_backend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch.nn.functional import scaled_dot_product_attention


class TorchAttention(TorchNativeAttnBackend):
    """`torch_native` with cap * tanh(logits / cap) for decoder layers that ask for it, grouped decodes without copies, and
    extends that attend from new tokens only.
    """

    def forward_extend(self, q, k, v, layer, forward_batch, save_kv_cache=True):
        """[tokens, heads * head_dim] -> [tokens, heads * v_head_dim]; causal over the sequence."""
        if layer.logit_cap <= 0 or layer.is_cross_attention:
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        starts, lengths = forward_batch.extend_prefix_lens.tolist(), forward_batch.extend_seq_lens.tolist()
        return self._capped(q, k, v, layer, forward_batch, save_kv_cache, starts, lengths)

    def forward_decode(self, q, k, v, layer, forward_batch, save_kv_cache=True):
        """[requests, heads * head_dim] -> [requests, heads * v_head_dim]."""
        if layer.logit_cap <= 0 or layer.is_cross_attention:
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        starts = (forward_batch.seq_lens - 1).tolist()
        return self._capped(q, k, v, layer, forward_batch, save_kv_cache, starts, [1] * len(starts))

    def _run_sdpa_forward_extend(
        self,
        query,
        output,
        k_cache,
        v_cache,
        req_to_token,
        req_pool_indices,
        seq_lens,
        extend_prefix_lens,
        extend_seq_lens,
        encoder_lens=None,
        **options,
    ):
        """A decoder's new tokens onto all of its own keys; anything else is left to SGLang."""
        same_dim = query.shape[-1] == v_cache.shape[-1]  # else torch has no fused attention that tells its normaliser
        if not (_is_plain(encoder_lens, options) and options["causal"] and same_dim):
            lengths = (seq_lens, extend_prefix_lens, extend_seq_lens)
            caches = (k_cache, v_cache, req_to_token, req_pool_indices)
            return super()._run_sdpa_forward_extend(query, output, *caches, *lengths, encoder_lens, **options)
        requests = zip(req_pool_indices.tolist(), extend_prefix_lens.tolist(), extend_seq_lens.tolist(), strict=True)
        done = 0
        for row, start, length in requests:
            keys, values = _read((k_cache, v_cache), req_to_token[row, : start + length], query.dtype)
            new = query[done : done + length].movedim(0, 1)
            output[done : done + length] = _attend_new(new, keys, values, start, options["scaling"]).movedim(0, 1)
            done += length
        return output

    def _run_sdpa_forward_decode(
        self, query, output, k_cache, v_cache, req_to_token, req_pool_indices, seq_lens, encoder_lens, **options
    ):
        """Grouped heads onto all of a decoder's own keys; anything else is left to SGLang."""
        if not (_is_plain(encoder_lens, options) and options["enable_gqa"]):
            caches = (k_cache, v_cache, req_to_token, req_pool_indices)
            return super()._run_sdpa_forward_decode(query, output, *caches, seq_lens, encoder_lens, **options)
        for row, length, one, out in zip(req_pool_indices.tolist(), seq_lens.tolist(), query, output, strict=True):
            keys, values = _read((k_cache, v_cache), req_to_token[row, :length], one.dtype)
            out.copy_(_attend_last(one, keys, values, options["scaling"]))
        return output

    def _capped(self, q, k, v, layer, forward_batch, save_kv_cache, starts, lengths):
        if save_kv_cache and k is not None:
            self.token_to_kv_pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc), k, v)
        keys = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
        values = self.token_to_kv_pool.get_value_buffer(layer.layer_id)
        queries = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        rows = forward_batch.req_pool_indices.tolist()
        outputs, done = [], 0
        for row, start, length in zip(rows, starts, lengths, strict=True):
            slots = self.req_to_token_pool.req_to_token[row, : start + length].long()
            outputs.append(_attend(queries[done : done + length], keys[slots], values[slots], layer, start))
            done += length
        return torch.cat(outputs).reshape(-1, layer.tp_q_head_num * layer.v_head_dim)


def _is_plain(encoder_lens: torch.Tensor | None, options: dict) -> bool:
    """Whether a layer's queries see their own sequence, and all of it."""
    return encoder_lens is None and options["sliding_window_size"] is None and not options["is_cross_attn"]


def _read(caches: tuple[torch.Tensor, ...], slots: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """What the slots hold, heads first: [slots, kv_heads, dim] of each paged buffer -> [kv_heads, N, dim]."""
    return [cache.index_select(0, slots).movedim(0, 1).to(dtype) for cache in caches]


def _attend_new(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int, scaling: float) -> torch.Tensor:
    """Queries at positions `start`.. onto the prefix, all of which they see, and causally onto themselves.

    [heads, n, dim], [kv_heads, start + n, dim] -> [heads, n, dim]. The two softmaxes are made one by their normalisers, in
    float32.
    """
    group = len(queries) // len(keys)
    own_keys, own_values = (one[:, start:].repeat_interleave(group, dim=0) for one in (keys, values))
    onto_own, own_lse = _fused_attention(queries, own_keys, own_values, scaling, causal=True)
    if start == 0:
        return onto_own
    rows = queries.reshape(len(keys), -1, queries.shape[-1])  # the heads of one key head as rows of one product
    onto_prefix, prefix_lse = _fused_attention(rows, keys[:, :start], values[:, :start], scaling, causal=False)
    weight = torch.sigmoid(prefix_lse.reshape(own_lse.shape) - own_lse)[..., None]
    return torch.lerp(onto_own.float(), onto_prefix.reshape(onto_own.shape).float(), weight).to(queries.dtype)


def _fused_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `scaled_dot_product_attention` runs on a CPU, with the logarithm of its normalisers, float32 [heads, n]."""
    run = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = run(queries[None], keys[None], values[None], 0.0, causal, scale=scaling)
    return out[0], lse[0]


def _attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layer, start: int) -> torch.Tensor:
    """Queries at positions `start`.. onto all keys: [n, heads, dim], [N, kv_heads, dim] -> [n, heads, v_dim]."""
    length, heads, dim = queries.shape
    kv_heads = keys.shape[1]
    grouped = queries.view(length, kv_heads, heads // kv_heads, dim)
    logits = torch.einsum("qhgd,khd->hgqk", grouped, keys.to(queries.dtype)) * layer.scaling
    logits = layer.logit_cap * torch.tanh(logits / layer.logit_cap)
    at = torch.arange(start, start + length, device=queries.device)[:, None]
    key_at = torch.arange(keys.shape[0], device=queries.device)
    visible = key_at <= at
    if layer.sliding_window_size is not None and layer.sliding_window_size > -1:
        visible &= key_at >= at - layer.sliding_window_size
    weights = logits.float().masked_fill(~visible, float("-inf")).softmax(dim=-1).to(queries.dtype)
    out = torch.einsum("hgqk,khd->qhgd", weights, values.to(queries.dtype))
    return out.reshape(length, heads, -1)


def _attend_last(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
    """The last token's heads onto all keys, those of one key head as rows of one product.

    [heads, dim], [kv_heads, N, dim] -> [heads, v_dim]
    """
    grouped = query.view(len(keys), -1, query.shape[-1])
    return scaled_dot_product_attention(grouped[None], keys[None], values[None], scale=scaling)[0].flatten(0, 1)


def cap_in_place(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """cap * tanh(logits / cap), in place as SGLang's kernel."""
    return logits.div_(cap).tanh_().mul_(cap)


def register() -> None:
    """Serve `--attention-backend torch_native` and the cap of final logits with these, in this process."""
    from sglang.srt.layers import logits_processor

    register_attention_backend("torch_native")(TorchAttention)
    logits_processor.fused_softcap = cap_in_place
    _absorb_latent_attention("torch_native")


def _absorb_latent_attention(backend: str) -> None:
    """Have DeepSeek's layers (MLA) attend in the latent space, always.

    SGLang takes a backend it has no handler for to attend from the uncompressed keys of new tokens. These backends read keys
    from the pool, which holds latents.
    """
    from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import AttnForwardMethod

    AttentionBackendRegistry.register(backend, lambda _attention, _forward_batch: AttnForwardMethod.MLA)
