"""What became of a prompt's chunks, and who asked for them: of the reply's `positions`, `scores` and `votes`."""

from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from specprefill_sgl.playground.prompt import Prompt

_NAMED = 3  # queries named beside a chunk


class Fate(StrEnum):
    """What became of a chunk: read, read once the answer asked for it, not read."""

    KEPT = "kept"
    REVIVED = "revived"
    DROPPED = "dropped"


class Query(NamedTuple):
    """A query that voted: a token of the question, or one of the lookahead's.

    Attributes
    ----------
    name : str
    votes : list of float [chunks]
        Its mean pooled attention on each.
    """

    name: str
    votes: list[float]


class Chunk(NamedTuple):
    """A chunk of the prompt.

    Attributes
    ----------
    text : str
    score : float
        What it was ranked by.
    fate : Fate
    voters : tuple of str
        The queries that asked for it most, strongest first; empty where votes are not known.
    """

    text: str
    score: float
    fate: Fate
    voters: tuple[str, ...] = ()


def queries(votes: dict[str, Any], prompt_tokens: int, decode: Any) -> list[Query]:
    """Of the reply's `votes`; the name says the token's text, and its position or that it was decoded."""
    return [
        Query(f"{_text(token, decode)} {position if position < prompt_tokens else 'decoded'}", row)
        for token, position, row in zip(votes["tokens"], votes["positions"], votes["chunks"], strict=True)
    ]


def _text(token: int, decode: Any) -> str:
    return "?" if token < 0 else repr(decode([token]))  # decoded by a draft with a tokenizer of its own


def chunks(prompt: Prompt, reply: dict[str, Any], asked: list[Query]) -> list[Chunk]:
    """Of a reply that has scores and positions. A chunk is kept if its last token is."""
    size, positions = reply["chunk_size"], reply["positions"]
    kept, back = set(positions), _returned(positions, reply["revived_tokens"])
    last = [min(start + size, len(prompt.ids)) - 1 for start in range(0, len(prompt.ids), size)]
    fates = [Fate.REVIVED if one in back else Fate.KEPT if one in kept else Fate.DROPPED for one in last]
    rows = zip(prompt.pieces(size), reply["scores"], fates, _voters(asked, len(last)), strict=True)
    return [Chunk(*row) for row in rows]


def _returned(positions: list[int], count: int) -> set[int]:
    """What returned is prefilled after what was kept and before the prompt's last token."""
    return set(positions[len(positions) - 1 - count : -1]) if count else set()


def _voters(asked: list[Query], count: int) -> list[tuple[str, ...]]:
    if not asked:
        return [()] * count
    votes = np.array([query.votes for query in asked])
    strongest = np.argsort(-votes, axis=0, kind="stable")[:_NAMED].T
    # the prompt's last token may vote twice: in the window, and before what is decoded
    return [
        tuple(dict.fromkeys(asked[one].name for one in queries if votes[one, chunk] > 0))
        for chunk, queries in enumerate(strongest.tolist())
    ]


def plain(found: list[Chunk], reply: dict[str, Any]) -> dict[str, Any]:
    """What the page draws; names of queries are listed once."""
    names = list(dict.fromkeys(name for chunk in found for name in chunk.voters))
    number = {name: at for at, name in enumerate(names)}
    return {
        "chunks": [chunk.text for chunk in found],
        "scores": [chunk.score for chunk in found],
        "fates": [chunk.fate for chunk in found],
        "queries": names,
        "voters": [[number[name] for name in chunk.voters] for chunk in found],
        "reply": {name: value for name, value in reply.items() if not isinstance(value, list | dict)},
    }
