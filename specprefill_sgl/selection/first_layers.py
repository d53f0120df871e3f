"""How a model's first layers vote where they read for the whole: the prompt's last tokens, in the last of these layers.

An early exit decodes badly, so nothing is decoded. Over all layers those heads would win that look at the beginning or next to
themselves; what is asked for is found in the last ones.
"""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from specprefill_sgl.selection.rule import WINDOW, Rule

VOTING_PART = 4  # without calibrated heads, one of so many layers votes, the last ones

Layer = TypeVar("Layer")


def of_last_tokens(rule: Rule) -> Rule:
    """The same rule without lookahead, with a window."""
    return msgspec.structs.replace(rule, lookahead=1, window=rule.window or WINDOW)


def last_part(layers: Sequence[Layer], part: int) -> Sequence[Layer]:
    """Of so many parts of the layers the last one, rounded down, at least one layer."""
    return layers[-max(len(layers) // part, 1) :]
