"""What both scoring kernels do to a tile: load its queries and keys, make logits, sum over windows."""

import triton
import triton.language as tl


@triton.jit
def load_queries(
    queries, visible, prompt, first, end, first_vote, votes, stride_prompt, stride_vote, stride_head,
    tile_heads: tl.constexpr, tile_votes: tl.constexpr, head_dim: tl.constexpr, block_dim: tl.constexpr,
):  # fmt: skip
    """Heads first to end (at most tile_heads) by votes as rows [tile_heads * tile_votes, block_dim].

    And which head and vote a row is, how many leading tokens it sees, and whether it counts.
    """
    row = tl.arange(0, tile_heads * tile_votes)
    head, vote = first + row // tile_votes, first_vote + row % tile_votes
    sees = tl.load(visible + prompt * votes + vote, mask=vote < votes, other=0)
    counts = (head < end) & (sees > 0)
    dim = tl.arange(0, block_dim)
    at = queries + prompt * stride_prompt + vote * stride_vote + head * stride_head
    tile = tl.load(at[:, None] + dim[None, :], mask=counts[:, None] & (dim < head_dim)[None, :], other=0.0)
    return tile, head, vote, sees, counts


@triton.jit
def heads_of_tile(chosen, at, tile, group, tile_heads: tl.constexpr, choosy: tl.constexpr):
    """Of a tile: its key head, its first query head, and the one after the last it may have."""
    if choosy:
        head = tl.load(chosen + at)
        return head // group, head, head + 1
    return at, at * group + tile * tile_heads, (at + 1) * group


@triton.jit
def load_keys(keys, slots, position, inside, head, stride_slot, stride_head, head_dim: tl.constexpr, block_dim: tl.constexpr):
    """Keys of one head at the given positions of the packed prompts, [block, block_dim]; 0 outside."""
    slot = tl.load(slots + position, mask=inside, other=0)  # int64: slot * stride may exceed 32 bits
    dim = tl.arange(0, block_dim)
    at = keys + slot * stride_slot + head * stride_head
    return tl.load(at[:, None] + dim[None, :], mask=inside[:, None] & (dim < head_dim)[None, :], other=0.0)


@triton.jit
def attention_logits(queries, keys, scaling, cap, capped: tl.constexpr, native: tl.constexpr):
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
def window_sums(attention, band, paired: tl.constexpr):
    """Sums over a window around each position, [rows, block] in float32; `band` is 0 or 1, [block, block].

    If `paired`, attention goes through 16-bit tensor cores as the sum of two bfloat16, within 2^-17 of itself.
    """
    if paired:
        coarse = attention.to(tl.bfloat16)
        fine = (attention - coarse.to(tl.float32)).to(tl.bfloat16)
        sums = tl.dot(fine, band.to(tl.bfloat16))
        return tl.dot(coarse, band.to(tl.bfloat16), acc=sums)
    return tl.dot(attention, band, input_precision="ieee")
