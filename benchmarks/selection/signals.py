"""What the scores say of themselves: candidates for a keep ratio that knows when to stop (issue Selection, 6)."""

import numpy as np

from benchmarks.selection.reading import Reading
from specprefill_sgl.request.prompts import Cast, Prompt
from specprefill_sgl.selection.importance import chunk_scores

NAMES = ("covered", "margin", "flatness", "agreement", "outside", "entropy", "question")


def of(reading: Reading, prompt: Prompt, votes: Cast, kept: np.ndarray) -> dict[str, float]:
    """Of one selection; each is known before the target reads anything.

    covered: share of the scores that is kept. margin: the worst chosen chunk's score over the best dropped one's, logarithm.
    flatness: entropy of the scores over that of equal ones. agreement: mean over queries of how much of each one's votes is
    kept. outside: share of all votes that lies outside the kept tail. entropy: of the draft's first token, nats. question:
    tokens from the question's beginning to the prompt's end.
    """
    scores = chunk_scores(votes.votes, votes.n_window, prompt.rule).double().cpu().numpy()
    forced = prompt.cut.forced
    chosen = np.zeros_like(forced)
    chosen[kept // prompt.rule.chunk_size] = True
    free, dropped = scores[chosen & ~forced], scores[~chosen]
    share = scores / scores.sum()
    by_token = votes.votes.double().cpu().numpy()
    on_kept = by_token[:, kept].sum(axis=1) / np.maximum(by_token.sum(axis=1), 1e-30)
    end = len(prompt.ids) - prompt.cut.forced_tail
    return {
        "covered": float(share[chosen].sum()),
        "margin": float(np.log(max(free.min(), 1e-30) / max(dropped.max(), 1e-30))) if len(free) and len(dropped) else 0.0,
        "flatness": float(-(share * np.log(np.maximum(share, 1e-30))).sum() / np.log(len(share))),
        "agreement": float(on_kept.mean()),
        "outside": float(by_token[:, :end].sum() / max(by_token.sum(), 1e-30)),
        "entropy": reading.next_entropy,
        "question": float(len(prompt.ids) - reading.example.question[0]),
    }
