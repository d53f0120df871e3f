"""The default selection, `best`, computed anew from an independent reference's votes (docs/selection.md, 3 to 5)."""

import functools
from collections.abc import Callable

from tests.support import reference

RULE = {"lookahead": 8, "window": 0, "pool_kernel": 31, "chunk_size": 8, "first": 4}  # without calibrated heads


def kept(votes_of: Callable[..., dict], rule: dict, changed: dict, n: int, keep_ratio: float) -> list[int]:
    """Kept positions of a prompt of `n` tokens.

    `votes_of(n, lookahead=, window=, ...)` are its votes by kind, as `reference.draft_votes` counts them; `changed` are the
    request's settings.
    """
    size = changed.get("chunk_size", rule["chunk_size"])
    if "keep_last" in changed:  # as asked, whatever the budget
        forced = [chunk for chunk in range(-(-n // size)) if (chunk + 1) * size > n - changed["keep_last"]]
    else:
        forced = reference.tail_chunks(n, keep_ratio=keep_ratio, chunk_size=size, keep_last=48)
    by_kind = votes_of(
        n,
        lookahead=rule["lookahead"],
        window=changed.get("window", rule["window"]),
        pool_kernel=changed.get("pool_kernel", rule["pool_kernel"]),
        ignore_first=changed.get("ignore_first", rule["first"]),
        ignore_last=n - forced[0] * size if changed.get("ignore_tail", True) else 0,
    )
    crowds = [votes for votes in by_kind.values() if len(votes)]
    if changed.get("window_votes") != "turns":
        crowds = [functools.reduce(lambda a, b: reference.torch.cat([a, b]), crowds)]
    over = (lambda votes: votes.mean(dim=0)) if changed.get("over_votes") == "mean" else (lambda votes: votes.amax(dim=0))
    rankings = [[float(part.mean()) for part in over(votes).split(size)] for votes in crowds]
    places = [sorted(range(len(scores)), key=lambda i, s=scores: (-s[i], i)) for scores in rankings]
    best = {}
    for turn, order in enumerate(places):
        for place, chunk in enumerate(order):
            best[chunk] = min(best.get(chunk, n * 9), place * len(places) + turn)
    scores = rankings[0] if len(rankings) == 1 else [-best[i] for i in range(len(best))]
    return reference.select_tokens(scores, n, forced, keep_ratio=keep_ratio, chunk_size=size)
