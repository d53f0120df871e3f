"""What was kept of a prompt as a heat map: in the terminal and as one HTML page."""

import html
from typing import Any, NamedTuple

_LEVELS = 5  # shades of a score
_TERMINAL = (255, 230, 223, 216, 209, 203)  # 256-colour backgrounds, pale to strong
_NAMED = 3  # queries named beside a chunk
_PAGE = """<!doctype html><meta charset="utf-8"><title>specprefill explain</title>
<style>body{{font:14px/1.5 monospace;max-width:100ch;margin:2em auto;white-space:pre-wrap}}
span{{background:rgba(255,80,40,var(--s))}}.dropped{{opacity:.35}}</style>
<p>{summary}</p><div>{chunks}</div>"""


class Chunk(NamedTuple):
    """A chunk of the prompt.

    Attributes
    ----------
    text : str
    score : float
        What it was ranked by.
    kept : bool
    voters : tuple of str
        The queries that asked for it most, strongest first; empty where votes are not known.
    """

    text: str
    score: float
    kept: bool
    voters: tuple[str, ...] = ()


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


def queries(votes: dict[str, Any], prompt_tokens: int, decode: Any) -> list[Query]:
    """Of the reply's `votes`; the name says the token's text, and its position or that it was decoded."""
    return [
        Query(f"{_text(token, decode)} {position if position < prompt_tokens else 'decoded'}", row)
        for token, position, row in zip(votes["tokens"], votes["positions"], votes["chunks"], strict=True)
    ]


def _text(token: int, decode: Any) -> str:
    return "?" if token < 0 else repr(decode([token]))  # decoded by a draft with a tokenizer of its own


def chunks(
    ids: list[int], decode: Any, size: int, scores: list[float], positions: list[int], asked: list[Query]
) -> list[Chunk]:
    """A chunk is kept if its last token is."""
    kept = set(positions)
    parts = [ids[start : start + size] for start in range(0, len(ids), size)]
    return [
        Chunk(decode(part), score, at * size + len(part) - 1 in kept, _voters(asked, at))
        for at, (part, score) in enumerate(zip(parts, scores, strict=True))
    ]


def _voters(asked: list[Query], chunk: int) -> tuple[str, ...]:
    strongest = sorted(asked, key=lambda query: -query.votes[chunk])[:_NAMED]
    return tuple(query.name for query in strongest if query.votes[chunk] > 0)


def wishes(found: list[Chunk], asked: list[Query]) -> str:
    """Each query's most wanted chunk, a line each, and whether it was kept."""
    lines = []
    for query in asked:
        at = max(range(len(found)), key=lambda chunk: query.votes[chunk])
        fate = "kept" if found[at].kept else "dropped"
        lines.append(f"{query.name:>24} -> chunk {at}, {fate}, {query.votes[at]:.3g}: {found[at].text.strip()!r}")
    return "\n".join(lines)


def terminal(found: list[Chunk]) -> str:
    """Kept chunks bright, dropped ones dim; the background tells the score."""
    return "".join(
        f"\033[{'1;30' if chunk.kept else '2;37'};48;5;{_TERMINAL[level] if chunk.kept else 236}m{chunk.text}\033[0m"
        for chunk, level in zip(found, _levels(found), strict=True)
    )


def page(found: list[Chunk], summary: str) -> str:
    """One self-contained HTML page."""
    spans = [
        f'<span class="{"kept" if chunk.kept else "dropped"}" style="--s:{level / _LEVELS}" '
        f'title="{html.escape(_title(number, chunk))}">{html.escape(chunk.text)}</span>'
        for number, (chunk, level) in enumerate(zip(found, _levels(found), strict=True))
    ]
    return _PAGE.format(summary=html.escape(summary), chunks="".join(spans))


def _title(number: int, chunk: Chunk) -> str:
    asked = f", asked for by {', '.join(chunk.voters)}" if chunk.voters else ""
    return f"chunk {number}, score {chunk.score:.3g}{asked}"


def _levels(found: list[Chunk]) -> list[int]:
    """0 for the lowest scores to `_LEVELS` for the highest, by rank."""
    order = sorted(range(len(found)), key=lambda at: found[at].score)
    rank = {at: place for place, at in enumerate(order)}
    return [round(_LEVELS * rank[at] / max(1, len(found) - 1)) for at in range(len(found))]
