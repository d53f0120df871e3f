"""What returns of a prompt while its answer is written, anew from a Hugging Face draft (docs: Tokens that return)."""

from tests.support import best_reference, reference

PAPER = {"pool_kernel": 13, "chunk_size": 32, "first": 0, "over": lambda votes: votes.mean(dim=0)}
BEST = {**best_reference.RULE, "over": lambda votes: votes.amax(dim=0)}


def prefills(draft, ids, answer, kept, rule, asked, *, keep_ratio, most, heads=None):
    """(output tokens, positions) of each prefill of a prompt, by the answer as it was when it was asked.

    `asked` are the output tokens at which it was asked.
    """
    n, size, before, found = len(ids), rule["chunk_size"], 0, [(0, kept)]
    for said in asked:
        if rule is PAPER or rule["first"] == 0:
            forced, ignored = [(n - 1) // size], 0
        else:
            forced = reference.tail_chunks(n, keep_ratio=keep_ratio, chunk_size=size, keep_last=48)
            ignored = n - forced[0] * size
        votes = reference.answer_votes(
            *(draft, ids, answer[:said], said - before),
            pool_kernel=rule["pool_kernel"],
            ignore_first=rule["first"],
            ignore_last=ignored,
            heads=heads,
        )
        before = said
        importance = rule["over"](votes)
        if rule["first"] == 0:
            chosen = reference.select_chunks(importance, keep_ratio=keep_ratio, chunk_size=size)
        else:
            scores = [float(part.mean()) for part in importance.split(size)]
            chosen = reference.select_tokens(scores, n, forced, keep_ratio=keep_ratio, chunk_size=size)
        kept = _with_what_returns(importance, chosen, kept, size, most)
        if kept != found[-1][1]:
            found.append((said, kept))
    return found


def _with_what_returns(importance, chosen, kept, size, most):
    """The best chosen chunks that stand out and are not kept, before the last token."""
    scores = [float(part.mean()) for part in importance.split(size)]
    mean, have = sum(scores) / len(scores), set(kept)
    chunks = sorted({p // size for p in chosen}, key=lambda i: (-scores[i], i))
    lacking = [i for i in chunks if scores[i] >= 3 * mean and not set(_tokens(i, size, len(importance))) <= have]
    new = sorted(p for i in lacking[:most] for p in _tokens(i, size, len(importance)) if p not in have)
    return [*kept[:-1], *new, kept[-1]]


def _tokens(chunk, size, n):
    return range(chunk * size, min((chunk + 1) * size, n))
