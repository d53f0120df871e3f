"""Votes of a group of prompts to the positions that are kept, with what earlier turns kept and what is cached for nothing."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from specprefill_sgl.methods.protocol import Pass
from specprefill_sgl.request.prompts import Cast, Predicted, Prompt, Votes
from specprefill_sgl.selection.budget import free_chunks
from specprefill_sgl.selection.choose import best_after, choose
from specprefill_sgl.selection.chunks import Cut, leading_run
from specprefill_sgl.selection.importance import chunk_means, chunk_scores

_STANDS_OUT = 3.0  # times the mean score: lesser chunks answered hardly any prompt of the pair


class Selected(NamedTuple):
    """What was selected of one prompt.

    Attributes
    ----------
    positions : int64 [kept_tokens]
        In the order they are prefilled.
    scores : float32 [chunks] or None
    votes : Votes or None
    predicted : int
        Of a prompt that is kept whole, tokens at the start whose KV is predicted.
    """

    positions: np.ndarray
    scores: np.ndarray | None = None
    votes: Votes | None = None
    predicted: int = 0


def join(the_pass: Pass, casts: Sequence[Cast | Predicted | None]) -> list[Cast | Predicted | None]:
    """The votes of all ranks. Where one prompt's fail the rest are joined nevertheless: other ranks wait for each of them."""
    joined: list[Cast | Predicted | None] = []
    errors: list[Exception] = []
    for one in casts:
        try:
            joined.append(the_pass.joined(one) if isinstance(one, Cast) else one)
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return joined


def select_each(prompts: Sequence[Prompt], casts: Sequence[Cast | Predicted | None]) -> list[Selected]:
    """Of prompts with their votes, or with their predicted KV; of one that was cancelled and has none, nothing."""
    wanted = [(prompt, one) for prompt, one in zip(prompts, casts, strict=True) if isinstance(one, Cast)]
    found = iter(select([prompt for prompt, _ in wanted], [one for _, one in wanted]) if wanted else ())
    return [next(found) if isinstance(one, Cast) else _whole(prompt, one) for prompt, one in zip(prompts, casts, strict=True)]


def _whole(prompt: Prompt, one: Predicted | None) -> Selected:
    return Selected(np.arange(0)) if one is None else Selected(np.arange(len(prompt.ids)), predicted=one.tokens)


def select(prompts: Sequence[Prompt], casts: Sequence[Cast]) -> list[Selected]:
    """Of prompts with their votes.

    Raises
    ------
    ValueError
        If a vote is not finite.
    """
    cuts = [prompt.cut for prompt in prompts]
    best = choose(
        [chunk_scores(cast.votes, cast.n_window, prompt.rule) for prompt, cast in zip(prompts, casts, strict=True)],
        [one.forced for one in cuts],
        [free_chunks(one, prompt.keep_ratio, prompt.rule.budget_unit) for prompt, one in zip(prompts, cuts, strict=True)],
    )
    return [
        Selected((revived if prompt.answer else _positions)(prompt, cut, *one), one.scores, _votes(prompt, cast))
        for prompt, cut, cast, one in zip(prompts, cuts, casts, best, strict=True)
    ]


def _positions(prompt: Prompt, cut: Cut, chunks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The best chunks; what an earlier turn kept comes before them, what is cached undropped is not paid for."""
    positions = cut.positions(chunks)
    free = prompt.cached if prompt.kept is None else leading_run(prompt.kept)
    if leading_run(positions) < free:
        after = best_after(free // cut.size, scores, cut, prompt.keep_ratio, prompt.rule.budget_unit)
        after = np.union1d(np.arange(free), cut.positions(after))
        positions = after if prompt.kept is None else np.union1d(positions, after)
    return positions if prompt.kept is None else np.concatenate([prompt.kept, np.setdiff1d(positions, prompt.kept)])


def revived(prompt: Prompt, cut: Cut, chunks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """What is kept, with what the answer asks for and does not have: the best of the chunks that it would choose.

    A chunk must stand out, since each one costs a prefill. The prompt's last token stays the last: it is the beginning of the
    answer, and so coded prefixes still tell all positions (`request.skipcode`).
    """
    assert prompt.kept is not None
    wanted = chunks[scores[chunks] >= _STANDS_OUT * scores.mean()]
    wanted = wanted[np.argsort(-scores[wanted], kind="stable")]
    lacking = [chunk for chunk in wanted if not np.isin(cut.positions(np.array([chunk])), prompt.kept).all()]
    new = cut.positions(np.sort(np.array(lacking[: prompt.most_revived], dtype=np.int64)))
    return np.concatenate([prompt.kept[:-1], np.setdiff1d(new, prompt.kept), prompt.kept[-1:]])


def _votes(prompt: Prompt, cast: Cast) -> Votes | None:
    if not prompt.return_votes:
        return None
    chunks = chunk_means(cast.votes, prompt.rule.chunk_size).cpu().numpy()
    asked = zip(cast.tokens, cast.positions, strict=True)
    tokens = [prompt.ids[position] if position < len(prompt.ids) else token for token, position in asked]
    return Votes(tokens=tokens, positions=cast.positions, chunks=chunks)
