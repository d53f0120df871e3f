"""Answers of remembered requests, for the turns that may follow them."""

from array import array
from typing import Any

from specprefill_sgl.request.turns import Turn
from specprefill_sgl.stage.stage import Stage

_TURNS = "_spec_prefill_open_turns"


def open_turns(scheduler: Any) -> list[tuple[Any, Turn]]:
    """Remembered requests whose answers are not final, with their turns."""
    turns = getattr(scheduler, _TURNS, None)
    if turns is None:
        turns = []
        setattr(scheduler, _TURNS, turns)
    return turns


def close_turns(scheduler: Any, stage: Stage) -> None:
    """Give answers that became final to their turns, so that turns outlive requests without holding them."""
    turns = open_turns(scheduler)
    for req, turn in turns:
        if req.finished() and req.finished_reason.to_json()["type"] != "abort":
            stage.answered(turn, array("q", req.output_ids))
    # SGLang drops some aborted requests without ever calling them finished
    turns[:] = [entry for entry in turns if not entry[0].finished() and entry[0].to_finish is None]


def drop_turn(scheduler: Any, req: Any) -> None:
    """A request will have no answer."""
    turns = open_turns(scheduler)
    turns[:] = [entry for entry in turns if entry[0] is not req]
