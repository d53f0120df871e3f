"""Importance of prompt tokens in two Triton kernels a layer (README, What is computed, 2 to 4), for a draft group at once.

Keys are read where they lie in the paged KV buffer, through the slot of each token; logits never leave the chip. The first
kernel leaves the log-sum-exp of every query over parts of its prompt, the second computes the logits again, block by block
with a halo, and turns them into pooled attention. A block has one writer, so results do not depend on the order of programs.
"""

import torch
import triton
import triton.language as tl

from specprefill_sgl.scoring.packed import PackedPrompts

MAX_SPLITS = 64  # parts of a prompt in the first pass, so that one long prompt fills a GPU
MAX_POOL = 63  # a block must be wider than its halo on both sides
MAX_HEAD_DIM = 256
MAX_ROWS = 32  # queries (heads by votes) in one product, unless more vote: more spill registers


@triton.jit
def _queries(
    queries, prompt, first, end, n_votes, stride_prompt, stride_vote, stride_head,
    tile_heads: tl.constexpr, tile_votes: tl.constexpr, head_dim: tl.constexpr, block_dim: tl.constexpr,
):  # fmt: skip
    """Heads first to end (at most tile_heads) by votes as rows [tile_heads * tile_votes, block_dim]; and which rows count."""
    row = tl.arange(0, tile_heads * tile_votes)
    head, vote = first + row // tile_votes, row % tile_votes
    counts = (head < end) & (vote < n_votes)
    dim = tl.arange(0, block_dim)
    at = queries + prompt * stride_prompt + vote * stride_vote + head * stride_head
    tile = tl.load(at[:, None] + dim[None, :], mask=counts[:, None] & (dim < head_dim)[None, :], other=0.0)
    return tile, head, vote, counts


@triton.jit
def _keys(keys, slots, position, inside, head, stride_slot, stride_head, head_dim: tl.constexpr, block_dim: tl.constexpr):
    """Keys of one head at the given positions of the packed prompts, [block, block_dim]; 0 outside."""
    slot = tl.load(slots + position, mask=inside, other=0)  # int64: slot * stride may exceed 32 bits
    dim = tl.arange(0, block_dim)
    at = keys + slot * stride_slot + head * stride_head
    return tl.load(at[:, None] + dim[None, :], mask=inside[:, None] & (dim < head_dim)[None, :], other=0.0)


@triton.jit
def _logits(queries, keys, scaling, cap, capped: tl.constexpr, native: tl.constexpr):
    """Attention logits [rows, block] in float32. Products of 16-bit numbers are exact in it, so `native` loses nothing."""
    if not native:
        queries, keys = queries.to(tl.float32), keys.to(tl.float32)
    logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scaling
    if capped:  # cap * tanh(logits / cap), with an exponential that cannot overflow
        decay = tl.exp(-2.0 * tl.abs(logits / cap))
        size = cap * (1.0 - decay) / (1.0 + decay)
        logits = tl.where(logits < 0, -size, size)
    return logits


@triton.jit
def _window_sums(attention, band, paired: tl.constexpr):
    """Sums over a window around each position, [rows, block] in float32; `band` is 0 or 1, [block, block].

    If `paired`, attention goes through 16-bit tensor cores as the sum of two bfloat16, within 2^-17 of itself.
    """
    if paired:
        coarse = attention.to(tl.bfloat16)
        fine = (attention - coarse.to(tl.float32)).to(tl.bfloat16)
        sums = tl.dot(fine, band.to(tl.bfloat16))
        return tl.dot(coarse, band.to(tl.bfloat16), acc=sums)
    return tl.dot(attention, band, input_precision="ieee")


@triton.jit(do_not_specialize=["splits"])
def _partial_lse(
    partials, queries, keys, slots, starts, n_votes, q_prompt, q_vote, q_head, k_slot, k_head, scaling, cap,
    votes, kv_heads, group, tiles, splits, split_tokens, capped: tl.constexpr, native: tl.constexpr,
    tile_heads: tl.constexpr, tile_votes: tl.constexpr, head_dim: tl.constexpr, block_dim: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """First pass, one program for a tile of heads, a part of the prompt and a prompt: log-sum-exp over the part's keys.

    Writes `partials`, float32 [prompts, splits, heads, votes]: -inf for a part past the prompt's end.
    """
    kv_head, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    split, prompt = tl.program_id(1), tl.program_id(2)
    begin, end = tl.load(starts + prompt), tl.load(starts + prompt + 1)
    first = kv_head * group + tile * tile_heads
    q, head, vote, counts = _queries(
        queries, prompt, first, (kv_head + 1) * group, tl.load(n_votes + prompt), q_prompt, q_vote, q_head,
        tile_heads, tile_votes, head_dim, block_dim,
    )  # fmt: skip
    top = tl.full([tile_heads * tile_votes], float("-inf"), tl.float32)
    total = tl.full([tile_heads * tile_votes], 0.0, tl.float32)
    stop = tl.minimum(begin + (split + 1) * split_tokens, end)
    for position in range(begin + split * split_tokens, stop, block):
        at = position + tl.arange(0, block)
        k = _keys(keys, slots, at, at < end, kv_head, k_slot, k_head, head_dim, block_dim)
        logits = tl.where((at < end)[None, :], _logits(q, k, scaling, cap, capped, native), float("-inf"))
        higher = tl.maximum(top, tl.max(logits, axis=1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[:, None]), axis=1)
        top = higher
    at = ((prompt * splits + split) * kv_heads * group + head) * votes + vote
    tl.store(partials + at, top + tl.log(tl.where(total == 0.0, 1.0, total)), mask=counts)


@triton.jit(do_not_specialize=["splits", "out_vote"])
def _pooled_max(
    out, partials, sinks, queries, keys, slots, starts, n_votes, out_vote, q_prompt, q_vote, q_head, k_slot, k_head, scaling,
    cap, votes, kv_heads, group, tiles, splits, pool: tl.constexpr, paired: tl.constexpr, max_splits: tl.constexpr,
    sunk: tl.constexpr, capped: tl.constexpr, native: tl.constexpr, tile_heads: tl.constexpr, tile_votes: tl.constexpr,
    head_dim: tl.constexpr, block_dim: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Second pass, one program for `block - 2 * halo` tokens of a prompt: pooled attention, max over heads and with `out`."""
    halo: tl.constexpr = pool // 2
    prompt = tl.program_id(1)
    begin, end = tl.load(starts + prompt), tl.load(starts + prompt + 1)
    first = begin + tl.program_id(0) * (block - 2 * halo)
    if first >= end:
        return
    column = tl.arange(0, block)
    at = first - halo + column
    inside = (at >= begin) & (at < end)
    band = tl.where(tl.abs(column[:, None] - column[None, :]) <= halo, 1.0, 0.0)
    split = tl.arange(0, max_splits)
    valid_votes = tl.load(n_votes + prompt)
    best = tl.full([tile_votes, block], 0.0, tl.float32)
    unusable = 0.0  # NaN as soon as one log-sum-exp is not finite: the hardware's max would lose it
    for kv_head in range(kv_heads):
        k = _keys(keys, slots, at, inside, kv_head, k_slot, k_head, head_dim, block_dim)
        for tile in range(tiles):
            q, head, vote, counts = _queries(
                queries, prompt, kv_head * group + tile * tile_heads, (kv_head + 1) * group, valid_votes,
                q_prompt, q_vote, q_head, tile_heads, tile_votes, head_dim, block_dim,
            )  # fmt: skip
            part = ((prompt * splits + split[:, None]) * kv_heads * group + head[None, :]) * votes + vote[None, :]
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
            logits = _logits(q, k, scaling, cap, capped, native)
            attention = tl.where(counts[:, None] & inside[None, :], tl.exp(logits - lse[:, None]), 0.0)
            pooled = _window_sums(attention, band, paired)
            best = tl.maximum(best, tl.max(tl.reshape(pooled, [tile_heads, tile_votes, block]), axis=0))
    vote = tl.arange(0, tile_votes)
    own = (column >= halo) & (column < block - halo) & inside
    target = out + vote[:, None].to(tl.int64) * out_vote + at[None, :]
    mask = (vote < valid_votes)[:, None] & own[None, :]
    before = tl.load(target, mask=mask, other=0.0)
    tl.store(target, tl.maximum(before, best / pool + unusable, propagate_nan=tl.PropagateNan.ALL), mask=mask)


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
) -> None:
    """Raise `out` to one layer's pooled attention onto the prompts, max over its heads. Nothing waits for the device.

    Parameters
    ----------
    out : float32 [votes, total_tokens]
        Max over the layers so far; 0 before the first. NaN for a prompt whose attention is not finite.
    queries : [prompts, votes, heads, head_dim]
        After RoPE, any strides but the last; rows past `packed.n_votes` may hold anything.
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

    Raises
    ------
    ValueError
        For a pooling or a head that the kernels were not made for.

    Notes
    -----
    Keys are read twice. Scratch is at most prompts * 64 * heads * votes floats, whatever the lengths.
    """
    prompts, votes, heads, head_dim = queries.shape
    kv_heads = keys.shape[1]
    if not kernels_can(pool_kernel, head_dim) or heads % kv_heads:
        shape = f"{heads} heads of {head_dim}, {kv_heads} key heads, pool_kernel {pool_kernel}"
        raise ValueError(f"the Triton kernels were not made for {shape}")
    assert queries.stride(-1) == keys.stride(-1) == out.stride(-1) == packed.slots.stride(0) == 1
    group = heads // kv_heads
    tile = tile_sizes(votes, group, head_dim, pool_kernel, native=keys.is_cuda and keys.dtype == queries.dtype != torch.float32)
    block, tiles = tile["block"], triton.cdiv(group, tile["tile_heads"])
    split_tokens = triton.cdiv(triton.cdiv(packed.max_tokens, block), MAX_SPLITS) * block
    splits = triton.cdiv(packed.max_tokens, split_tokens)
    partials = torch.empty(prompts, splits, heads, votes, dtype=torch.float32, device=out.device)
    inputs = (queries, keys, packed.slots, packed.starts, packed.n_votes)
    strides = (*queries.stride()[:3], *keys.stride()[:2])
    sizes = (scaling, logit_cap, votes, kv_heads, group, tiles, splits)
    capped = logit_cap > 0
    _partial_lse[kv_heads * tiles, splits, prompts](
        partials, *inputs, *strides, *sizes, split_tokens, capped=capped, num_warps=4, **tile
    )
    _pooled_max[triton.cdiv(packed.max_tokens, block - 2 * (pool_kernel // 2)), prompts](
        out, partials, partials if sinks is None else sinks.contiguous(), *inputs, out.stride(0), *strides, *sizes,
        pool=pool_kernel, paired=keys.is_cuda, max_splits=MAX_SPLITS, sunk=sinks is not None, capped=capped,
        num_warps=8, **tile,
    )  # fmt: skip


def kernels_can(pool_kernel: int, head_dim: int) -> bool:
    """Whether the kernels were made for this pooling and head."""
    return pool_kernel % 2 == 1 and pool_kernel <= MAX_POOL and head_dim <= MAX_HEAD_DIM


def tile_sizes(votes: int, group: int, head_dim: int, pool_kernel: int, *, native: bool) -> dict[str, int]:
    """What one program works on: the compile-time sizes both kernels share. `group` is heads per key head."""
    tile_votes = triton.next_power_of_2(votes)
    tile_heads = max(16 // tile_votes, min(triton.next_power_of_2(group), MAX_ROWS // tile_votes), 1)
    return {
        "native": native,
        "tile_heads": tile_heads,  # by tile_votes: at least the 16 rows a product needs
        "tile_votes": tile_votes,
        "head_dim": head_dim,
        "block_dim": max(16, triton.next_power_of_2(head_dim)),
        "block": 128 if pool_kernel > 31 or (native and head_dim <= 128) else 64,
    }
