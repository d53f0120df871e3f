"""`torch_native` attention of the CPU platform: SGLang 0.5.23's own, where that is right and quick.

It ignores `layer.logit_cap` (Gemma 2 and its like), which answers wrongly, and its cap of the final logits is a Triton kernel
on every out-of-tree platform, which fails. It writes the keys of windowed layers to their own pool's slots and reads them at
the other pool's, which fails as soon as the two differ. It knows no sinks (gpt-oss). In decodes with grouped query heads torch
copies every key for each of its heads. What extends a prefix attends from the prefix again and drops that: with chunked
prefill the cost grows with the cube of the prompt, and a cached prefix saves nothing.
"""

from collections.abc import Iterator

import torch
from sglang.srt.layers.attention.attention_registry import register_attention_backend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

from specprefill_sgl import compat
from specprefill_sgl.platforms.attention_math import Form, attend


class TorchAttention(TorchNativeAttnBackend):
    """A decoder's attention onto its own keys, from new tokens only; anything else is left to SGLang."""

    def get_cpu_graph_seq_len_fill_value(self) -> int:
        """Length of the rows that data-parallel attention pads a batch with."""
        return 1

    def forward_extend(self, q, k, v, layer, forward_batch, save_kv_cache=True, sinks=None):
        """[tokens, heads * head_dim] -> [tokens, heads * v_head_dim]; causal over the sequence."""
        if not _is_decoders_own(layer, forward_batch):
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        if forward_batch.forward_mode.is_target_verify():
            starts = forward_batch.seq_lens.tolist()
            lengths = [forward_batch.spec_info.draft_token_num] * len(starts)
        else:
            starts, lengths = forward_batch.extend_prefix_lens.tolist(), forward_batch.extend_seq_lens.tolist()
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache, sinks, starts, lengths)

    def forward_decode(self, q, k, v, layer, forward_batch, save_kv_cache=True, sinks=None):
        """[requests, heads * head_dim] -> [requests, heads * v_head_dim]."""
        if not _is_decoders_own(layer, forward_batch):
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        starts = (forward_batch.seq_lens - 1).tolist()
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache, sinks, starts, [1] * len(starts))

    def _forward(self, q, k, v, layer, forward_batch, save_kv_cache, sinks, starts, lengths):
        """Each request's `lengths` new tokens, from position `starts` on, over the sequence so far."""
        self._write(k, v, layer, forward_batch, save_kv_cache)
        window = layer.sliding_window_size if layer.sliding_window_size > -1 else None
        form = Form(layer.scaling, layer.logit_cap, window, sinks)
        seen = _trees(forward_batch, starts, lengths, window)
        queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        output = q.new_empty(len(queries), layer.tp_q_head_num, layer.v_head_dim)
        done = 0
        for row, start, length in zip(forward_batch.req_pool_indices.tolist(), starts, lengths, strict=True):
            first = 0 if window is None else max(start - window, 0)
            slots = self._slots_of(layer, self.req_to_token_pool.req_to_token[row, first : start + length])
            keys, values = self._cached(layer, slots, q.dtype)
            own = slice(done, done + length)
            output[own] = attend(queries[own].movedim(0, 1), keys, values, form, next(seen)).movedim(0, 1)
            done += length
        return output.flatten(1)

    def _write(self, k, v, layer, forward_batch, save_kv_cache):
        if save_kv_cache and k is not None:
            loc = KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc)
            self.token_to_kv_pool.set_kv_buffer(layer, loc, k, v)

    def _cached(self, layer, slots: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at these slots of the layer's buffers, [kv_heads, slots, dim]."""
        pool = self.token_to_kv_pool
        caches = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
        keys, values = (cache.index_select(0, slots).movedim(0, 1).to(dtype) for cache in caches)
        return keys, values

    def _slots_of(self, layer, slots: torch.Tensor) -> torch.Tensor:
        """Where the layer's buffers hold what requests know by `slots`: a pool of windowed layers has slots of its own."""
        pool = self.token_to_kv_pool
        windowed = isinstance(pool, SWAKVPool) and pool.layers_mapping[layer.layer_id][1]
        return pool.translate_loc_from_full_to_swa(slots) if windowed else slots


def _trees(forward_batch, starts: list[int], lengths: list[int], window: int | None) -> Iterator[torch.Tensor | None]:
    """Of each request, which of its keys each new token may see, bool [new, start + new]; None: all up to itself.

    Speculative decoding verifies a tree of tokens, of which only a chain is an ordinary extension.
    """
    info = forward_batch.spec_info
    if not forward_batch.forward_mode.is_target_verify() or info.tree_topk == 1:
        yield from [None] * len(starts)
        return
    if window is not None:
        raise NotImplementedError("trees in layers with sliding windows: use --speculative-eagle-topk 1")
    done = 0
    for start, length in zip(starts, lengths, strict=True):
        size = length * (start + length)
        yield info.custom_mask[done : done + size].view(length, -1)
        done += size


def _is_decoders_own(layer, forward_batch) -> bool:
    """Whether queries see their own sequence up to themselves."""
    encoder = layer.is_cross_attention or layer.attn_type == AttentionType.ENCODER_ONLY
    return not encoder and forward_batch.encoder_lens is None


def cap_in_place(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """cap * tanh(logits / cap), in place as SGLang's kernel."""
    return logits.div_(cap).tanh_().mul_(cap)


def register() -> None:
    """Serve attention backends and the cap of final logits with these, in this process.

    Beside `torch_native` that is `intel_amx`, whose kernels no CPU platform of ours has: some models refuse `torch_native`
    for what SGLang's own lacks (gpt-oss: sinks), and `intel_amx` is the other name for a CPU.
    """
    from sglang.srt.layers import logits_processor

    for name in ("torch_native", "intel_amx"):
        register_attention_backend(name)(TorchAttention)
        compat.absorb_latents(name)  # it reads keys from the pool, which holds latents
    logits_processor.fused_softcap = cap_in_place
