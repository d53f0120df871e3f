"""Which queries vote and how votes become kept chunks: a rule, and the two that have a name (docs/selection.md, Rules)."""

from typing import Any, Literal, get_args

import msgspec

Preset = Literal["best", "paper"]
PRESETS: tuple[str, ...] = get_args(Preset)
Heads = tuple[tuple[int, int], ...]  # (attention layer in order, query head)
MAX_WINDOW = 256
WINDOW = 48  # where the question votes and nobody says by how many tokens
MAX_POOL = 63  # what the kernels take: a block must be wider than its halo on both sides


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A selection rule. Lengths are in tokens; the default values are the paper's (arXiv 2502.02789).

    Attributes
    ----------
    lookahead : int
        Draft queries that vote, the last prompt token's and `lookahead - 1` decoded ones. With a window, 1 is none: the last
        prompt token is in the window.
    window : int
        Last prompt tokens that vote besides; each sees only what is before it.
    window_votes : {"pooled", "turns"}
        Whether votes of lookahead and window are one crowd, or each ranks the chunks and they are taken in turn.
    over_votes : {"mean", "max"}
        A token's importance over the votes.
    pool_kernel : int
        Width of the average pooling over positions, odd, at most 63.
    chunk_size : int
        Tokens per chunk, the unit of selection.
    budget_unit : {"chunks", "tokens"}
        Whether the keep ratio counts chunks, where a short last one is a whole one, or tokens, of which chunks are filled.
    ignore_first : int
        Attention on that many tokens at the start counts for nothing (attention sinks).
    ignore_tail : bool
        Nor does attention on the tokens at the end that are kept anyway.
    keep_last : int
        Tokens at the end whose chunks are always kept, as far as an eighth of the budget holds them: of few tokens, those that
        say what was asked are worth more where the answer is.
    heads : tuple of (layer, head) or None
        The heads whose mean votes; None: the maximum over all heads and layers.
    over_heads : {"max", "mean"}
        Of the method lazy: whether the maximum over heads and layers votes, or the mean over the last layer's heads.
    """

    lookahead: int = 8
    window: int = 0
    window_votes: Literal["pooled", "turns"] = "pooled"
    over_votes: Literal["mean", "max"] = "mean"
    pool_kernel: int = 13
    chunk_size: int = 32
    budget_unit: Literal["chunks", "tokens"] = "chunks"
    ignore_first: int = 0
    ignore_tail: bool = False
    keep_last: int = 0
    heads: Heads | None = None
    over_heads: Literal["max", "mean"] = "max"

    @property
    def decodes(self) -> int:
        """Tokens the draft decodes."""
        return self.lookahead - 1

    @property
    def lookahead_votes(self) -> bool:
        """Whether the last prompt token and what is decoded after it are a vote of their own."""
        return self.lookahead > 1 or self.window == 0


PAPER = Rule()
_PAPERS = {  # of methods that are not the paper's; lazy: arXiv 2407.14057, 3.2
    "lazy": Rule(lookahead=1, window=1, pool_kernel=1, chunk_size=1, budget_unit="tokens", over_heads="mean"),
}
_BEST = Rule(
    over_votes="max", pool_kernel=31, chunk_size=8, budget_unit="tokens", ignore_first=4, ignore_tail=True, keep_last=48
)
TAIL_PART = 8  # of the budget, at most one in so many tokens
MOST_LOOKAHEAD = 8  # of the presets, which a request may ask for: pools have room for it


def preset(name: Preset, heads: Heads | None, method: str = "draft") -> Rule:
    """The named rule for a method with these calibrated heads, None without any; `paper` is the rule of the method's own paper.

    Where heads are known that find what a question asks for, the question votes with them. The lookahead votes too: of a value
    that is found through another one, the question names only the first step.
    """
    if name == "paper":
        return _PAPERS.get(method, PAPER)
    if heads is None:
        return _BEST
    return msgspec.structs.replace(_BEST, heads=heads, window=WINDOW)


# what flags, environment, file and, but for the lookahead, requests may change of a preset
CHANGEABLE = (
    *("lookahead", "window", "window_votes", "over_votes", "pool_kernel", "chunk_size"),
    *("budget_unit", "ignore_first", "ignore_tail"),
)

_RANGES = {
    "lookahead": (1, 2**31 - 1),
    "window": (0, MAX_WINDOW),
    "pool_kernel": (1, MAX_POOL),
    "chunk_size": (1, 2**31 - 1),
    "ignore_first": (0, 2**31 - 1),
}


def expected(name: str, value: Any) -> str | None:
    """What a field of a rule must be, if `value` is not; None if it is."""
    if name in _RANGES:
        lowest, highest = _RANGES[name]
        if not lowest <= value <= highest:
            return f"in [{lowest}, {highest}]"
    if name == "pool_kernel" and value % 2 == 0:
        return "odd"
    return None
