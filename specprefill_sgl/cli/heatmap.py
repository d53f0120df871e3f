"""What was kept of a prompt as a heat map in the terminal."""

from specprefill_sgl.playground.explained import Chunk, Fate, Query

_LEVELS = 5  # shades of a score
_TERMINAL = (255, 230, 223, 216, 209, 203)  # 256-colour backgrounds, pale to strong
_DROPPED = 236


def terminal(found: list[Chunk]) -> str:
    """Kept chunks bright, dropped ones dim; the background tells the score."""
    return "".join(_painted(chunk, level) for chunk, level in zip(found, _levels(found), strict=True))


def _painted(chunk: Chunk, level: int) -> str:
    font, ground = ("2;37", _DROPPED) if chunk.fate is Fate.DROPPED else ("1;30", _TERMINAL[level])
    return f"\033[{font};48;5;{ground}m{chunk.text}\033[0m"


def wishes(found: list[Chunk], asked: list[Query]) -> str:
    """Each query's most wanted chunk, a line each, and what became of it."""
    lines = []
    for query in asked:
        at = max(range(len(found)), key=lambda chunk: query.votes[chunk])
        wanted = found[at]
        lines.append(f"{query.name:>24} -> chunk {at}, {wanted.fate}, {query.votes[at]:.3g}: {wanted.text.strip()!r}")
    return "\n".join(lines)


def _levels(found: list[Chunk]) -> list[int]:
    """0 for the lowest scores to `_LEVELS` for the highest, by rank."""
    order = sorted(range(len(found)), key=lambda at: found[at].score)
    rank = {at: place for place, at in enumerate(order)}
    return [round(_LEVELS * rank[at] / max(1, len(found) - 1)) for at in range(len(found))]
