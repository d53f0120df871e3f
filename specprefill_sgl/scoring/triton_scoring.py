"""Importance of prompt tokens in two Triton kernels a layer (docs/selection.md, 2 to 4), for a draft group at once.

Keys are read where they lie in the paged KV buffer, through the slot of each token; logits never leave the chip. The first
kernel leaves the log-sum-exp of every query over parts of its prompt, the second computes the logits again, block by block
with a halo, and turns them into pooled attention. A block has one writer, so results do not depend on the order of programs.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl

from specprefill_sgl.scoring.packed import PackedPrompts
from specprefill_sgl.scoring.triton_tiles import attention_logits, heads_of_tile, load_keys, load_queries, window_sums
from specprefill_sgl.selection.rule import MAX_POOL

MAX_SPLITS = 64  # parts of a prompt in the first pass, so that one long prompt fills a GPU
MAX_HEAD_DIM = 256
MAX_ROWS = 32  # queries (heads by votes) in one product, unless more vote: more spill registers


@triton.jit(do_not_specialize=["splits"])
def _partial_lse(
    partials, queries, keys, slots, starts, visible, chosen, q_prompt, q_vote, q_head, k_slot, k_head, scaling, cap,
    votes, heads, group, tiles, vote_tiles, splits, split_tokens, choosy: tl.constexpr, capped: tl.constexpr,
    native: tl.constexpr, tile_heads: tl.constexpr, tile_votes: tl.constexpr, head_dim: tl.constexpr,
    block_dim: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """First pass, one program for a tile of heads and votes and a part of a prompt: log-sum-exp over the part's keys.

    Writes `partials`, float32 [prompts, splits, heads, votes]: -inf for a part that a query does not see.
    """
    head_tile, vote_tile = tl.program_id(0) // vote_tiles, tl.program_id(0) % vote_tiles
    split, prompt = tl.program_id(1), tl.program_id(2)
    begin, end = tl.load(starts + prompt), tl.load(starts + prompt + 1)
    kv_head, first, last = heads_of_tile(chosen, head_tile // tiles, head_tile % tiles, group, tile_heads, choosy)
    q, head, vote, sees, counts = load_queries(
        queries, visible, prompt, first, last, vote_tile * tile_votes, votes, q_prompt, q_vote, q_head,
        tile_heads, tile_votes, head_dim, block_dim,
    )  # fmt: skip
    top = tl.full([tile_heads * tile_votes], float("-inf"), tl.float32)
    total = tl.full([tile_heads * tile_votes], 0.0, tl.float32)
    stop = tl.minimum(begin + (split + 1) * split_tokens, tl.minimum(end, begin + tl.max(sees, axis=0)))
    for position in range(begin + split * split_tokens, stop, block):
        at = position + tl.arange(0, block)
        k = load_keys(keys, slots, at, at < end, kv_head, k_slot, k_head, head_dim, block_dim)
        seen = (at - begin)[None, :] < sees[:, None]
        logits = tl.where(seen, attention_logits(q, k, scaling, cap, capped, native), float("-inf"))
        higher = tl.maximum(top, tl.max(logits, axis=1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet
        total = total * tl.exp(top - finite) + tl.sum(tl.exp(logits - finite[:, None]), axis=1)
        top = higher
    at = ((prompt * splits + split) * heads + head) * votes + vote
    tl.store(partials + at, top + tl.log(tl.where(total == 0.0, 1.0, total)), mask=counts)


@triton.jit(do_not_specialize=["splits", "out_vote"])
def _pool(
    out, partials, sinks, queries, keys, slots, starts, visible, counted, chosen, out_vote, q_prompt, q_vote, q_head, k_slot,
    k_head, scaling, cap, votes, heads, group, tiles, head_tiles, splits, pool: tl.constexpr, paired: tl.constexpr,
    max_splits: tl.constexpr, sunk: tl.constexpr, choosy: tl.constexpr, capped: tl.constexpr, native: tl.constexpr,
    tile_heads: tl.constexpr, tile_votes: tl.constexpr, head_dim: tl.constexpr, block_dim: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Second pass, one program for `block - 2 * halo` tokens of a prompt and a tile of votes: pooled attention into `out`.

    The maximum over all heads and with `out`, or the sum over the chosen ones and with `out`.
    """
    halo: tl.constexpr = pool // 2
    prompt, first_vote = tl.program_id(1), tl.program_id(2) * tile_votes
    begin, end = tl.load(starts + prompt), tl.load(starts + prompt + 1)
    first = begin + tl.program_id(0) * (block - 2 * halo)
    if first >= end:
        return
    column = tl.arange(0, block)
    at = first - halo + column
    inside = (at >= begin) & (at < end)
    counting = (at >= begin + tl.load(counted + 2 * prompt)) & (at < begin + tl.load(counted + 2 * prompt + 1))
    band = tl.where(tl.abs(column[:, None] - column[None, :]) <= halo, 1.0, 0.0)
    split = tl.arange(0, max_splits)
    result = tl.full([tile_votes, block], 0.0, tl.float32)
    unusable = 0.0  # NaN as soon as one log-sum-exp is not finite: the hardware's max would lose it
    for head_tile in range(head_tiles):
        kv_head, low, high = heads_of_tile(chosen, head_tile, 0, group, tile_heads, choosy)
        k = load_keys(keys, slots, at, inside, kv_head, k_slot, k_head, head_dim, block_dim)
        for tile in range(tiles):
            q, head, vote, sees, counts = load_queries(
                queries, visible, prompt, low + tile * tile_heads, high, first_vote, votes, q_prompt, q_vote, q_head,
                tile_heads, tile_votes, head_dim, block_dim,
            )  # fmt: skip
            part = ((prompt * splits + split[:, None]) * heads + head[None, :]) * votes + vote[None, :]
            lse = tl.load(partials + part, mask=(split < splits)[:, None] & counts[None, :], other=float("-inf"))
            lse = tl.where(counts[None, :], lse, 0.0)
            top = tl.max(lse, axis=0)
            if sunk:  # one more logit per head in the normaliser
                sink = tl.load(sinks + head, mask=counts, other=float("-inf")).to(tl.float32)
                top = tl.maximum(top, sink)
            total = tl.sum(tl.exp(lse - top[None, :]), axis=0)
            if sunk:
                total += tl.exp(sink - top)
            lse = top + tl.log(total)
            unusable += tl.sum(lse * 0.0, axis=0)
            logits = attention_logits(q, k, scaling, cap, capped, native)
            seen = counts[:, None] & ((at - begin)[None, :] < sees[:, None]) & (inside & counting)[None, :]
            attention = tl.where(seen, tl.exp(logits - lse[:, None]), 0.0)
            pooled = tl.reshape(window_sums(attention, band, paired), [tile_heads, tile_votes, block])
            if choosy:
                result += tl.sum(pooled, axis=0)
            else:
                result = tl.maximum(result, tl.max(pooled, axis=0))
    vote = first_vote + tl.arange(0, tile_votes)
    votes_here = tl.load(visible + prompt * votes + vote, mask=vote < votes, other=0) > 0
    own = (column >= halo) & (column < block - halo) & inside
    target = out + vote[:, None].to(tl.int64) * out_vote + at[None, :]
    mask = votes_here[:, None] & own[None, :]
    before = tl.load(target, mask=mask, other=0.0)
    if choosy:
        result = before + result / pool + unusable
    else:
        result = tl.maximum(before, result / pool + unusable, propagate_nan=tl.PropagateNan.ALL)
    tl.store(target, result, mask=mask)


def accumulate_votes(
    out: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    packed: PackedPrompts,
    *,
    scaling: float,
    logit_cap: float,
    pool_kernel: int,
    sinks: torch.Tensor | None = None,
    heads: Sequence[int] | None = None,
) -> None:
    """Bring one layer's pooled attention onto the prompts into `out`: the maximum over its heads, or the sum over chosen ones.

    Nothing waits for the device, but for the first call with these heads: they are copied there.

    Parameters
    ----------
    out : float32 [votes, total_tokens]
        Of the layers so far; 0 before the first. NaN for a prompt whose attention is not finite.
    queries : [prompts, votes, heads, head_dim]
        After RoPE, any strides but the last; queries that see nothing by `packed.visible` may be anything.
    keys : [slots, kv_heads, head_dim]
        The layer's paged buffer, after RoPE, bfloat16, float16 or float32; query head h reads head h // (heads // kv_heads).
    packed : PackedPrompts
        At least one token in each prompt.
    scaling, logit_cap : float
        The layer's softmax scale and cap (cap * tanh(x / cap)); 0 for no cap.
    pool_kernel : int
        Odd width of the average pooling over positions, zero padding counted.
    sinks : [heads], optional
        One more logit per head in the normaliser; its own weight is dropped.
    heads : sequence of int, optional
        Different query heads whose sum is wanted; without it, the maximum over all.

    Raises
    ------
    ValueError
        For a pooling or a head that the kernels were not made for.

    Notes
    -----
    Keys are read twice. Scratch is at most prompts * 64 * heads * votes floats, whatever the lengths.
    """
    prompts, votes, n_heads, head_dim = queries.shape
    kv_heads = keys.shape[1]
    if not kernels_can(pool_kernel, head_dim) or n_heads % kv_heads:
        shape = f"{n_heads} heads of {head_dim}, {kv_heads} key heads, pool_kernel {pool_kernel}"
        raise ValueError(f"the Triton kernels were not made for {shape}")
    assert queries.stride(-1) == keys.stride(-1) == out.stride(-1) == packed.slots.stride(0) == 1
    group, choosy = n_heads // kv_heads, heads is not None
    native = keys.is_cuda and keys.dtype == queries.dtype != torch.float32
    tile = tile_sizes(votes, 1 if choosy else group, head_dim, pool_kernel, native=native)
    block, vote_tiles = tile["block"], triton.cdiv(votes, tile["tile_votes"])
    head_tiles, tiles = (len(heads), 1) if heads is not None else (kv_heads, triton.cdiv(group, tile["tile_heads"]))
    chosen = packed.counted if heads is None else _on_device(tuple(heads), out.device)
    split_tokens = triton.cdiv(triton.cdiv(packed.max_tokens, block), MAX_SPLITS) * block
    splits = triton.cdiv(packed.max_tokens, split_tokens)
    partials = torch.empty(prompts, splits, n_heads, votes, dtype=torch.float32, device=out.device)
    inputs = (queries, keys, packed.slots, packed.starts, packed.visible)
    strides = (*queries.stride()[:3], *keys.stride()[:2])
    sizes = (scaling, logit_cap, votes, n_heads, group, tiles)
    capped = logit_cap > 0
    _partial_lse[head_tiles * tiles * vote_tiles, splits, prompts](
        partials, *inputs, chosen, *strides, *sizes, vote_tiles, splits, split_tokens, choosy=choosy, capped=capped,
        num_warps=4, **tile,
    )  # fmt: skip
    _pool[triton.cdiv(packed.max_tokens, block - 2 * (pool_kernel // 2)), prompts, vote_tiles](
        out, partials, partials if sinks is None else sinks.contiguous(), *inputs, packed.counted, chosen, out.stride(0),
        *strides, *sizes, head_tiles, splits, pool=pool_kernel, paired=keys.is_cuda, max_splits=MAX_SPLITS,
        sunk=sinks is not None, choosy=choosy, capped=capped, num_warps=8, **tile,
    )  # fmt: skip


@lru_cache
def _on_device(heads: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(heads, dtype=torch.int32, device=device)


def kernels_can(pool_kernel: int, head_dim: int) -> bool:
    """Whether the kernels were made for this pooling and head."""
    return pool_kernel % 2 == 1 and pool_kernel <= MAX_POOL and head_dim <= MAX_HEAD_DIM


def tile_sizes(votes: int, group: int, head_dim: int, pool_kernel: int, *, native: bool) -> dict[str, int]:
    """What one program works on: the compile-time sizes both kernels share. `group` is heads per key head, or 1 if chosen."""
    # larger heads, and products in float32, run out of registers and at last of shared memory
    most_votes = 16 if not native else 64 if head_dim <= 64 else 32
    tile_votes = min(triton.next_power_of_2(votes), most_votes)  # of more votes, each tile is a program of its own
    tile_heads = max(16 // tile_votes, min(triton.next_power_of_2(group), min(MAX_ROWS, most_votes) // tile_votes), 1)
    return {
        "native": native,
        "tile_heads": tile_heads,  # by tile_votes: at least the 16 rows a product needs
        "tile_votes": tile_votes,
        "head_dim": head_dim,
        "block_dim": max(16, triton.next_power_of_2(head_dim)),
        "block": 128 if pool_kernel > 31 or (native and head_dim <= 128) else 64,
    }
