"""Pipeline stages: the first one drafts and decides, and tells the others what it did to the queue.

Each stage runs a scheduler of its own on the same requests. They stay in step because all of them decide alike, without a
word: what only one of them knows would part their batches. So what the first one does to waiting requests goes on to the next
in the same iteration, as SGLang sends which grammars are ready, and a later stage waits for it where the first one drafts. It
loses no time by that: its next batch begins with the first one's.

Drafting on all stages and agreeing over them would wait for ever: a later stage is an iteration behind, and finishes that one
with outputs which the first stage passes on only after its own next batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sglang.srt.runtime_context import get_parallel

from specprefill_sgl.hooks.launch import config_of
from specprefill_sgl.request.prompts import Outcome
from specprefill_sgl.request.state import PromptState

_TAG = int.from_bytes(b"PpSp", "big")  # beside SGLang's own in the same group
_EVENTS = "_spec_prefill_events"
_SENDING = "_spec_prefill_sending"


class Seen(NamedTuple):
    """A request's options were read; those that cannot be are an error, which ends the request."""

    rid: str
    state: PromptState
    error: str | None


class Looked(NamedTuple):
    """The radix cache was asked for a prompt's plain ids, or for those at some positions: that makes them recently used."""

    rid: str
    positions: np.ndarray | None


class Decided(NamedTuple):
    """What becomes of a request."""

    rid: str
    outcome: Outcome


Event = Seen | Looked | Decided


def follows(scheduler: Any) -> bool:
    """Whether an earlier stage decides for this one."""
    return config_of(scheduler.server_args) is not None and get_parallel().pp_rank > 0


def tell(scheduler: Any, event: Event) -> None:
    """Write down what was done, for the later stages, if there are any."""
    if get_parallel().pp_size > 1:
        vars(scheduler).setdefault(_EVENTS, []).append(event)


def relay(scheduler: Any, held: Sequence[Any]) -> None:
    """Send on what was done since the last time, and which requests wait on. An empty queue is not worth a word."""
    if get_parallel().pp_size > 1 and scheduler.waiting_queue:
        _send(scheduler, (vars(scheduler).pop(_EVENTS, []), [req.rid for req in held]))


def receive(scheduler: Any) -> tuple[list[Event], list[str]]:
    """What the first stage did in this iteration, and the ids of the requests that wait on; the stage after this is told."""
    if not scheduler.waiting_queue:
        return [], []
    parallel = get_parallel()
    message = parallel.pp_group.recv_object(src=parallel.pp_rank - 1, tag=_TAG)
    if not parallel.pp_group.is_last_rank:
        _send(scheduler, message)
    return message


def _send(scheduler: Any, message: tuple[list[Event], list[str]]) -> None:
    for before in getattr(scheduler, _SENDING, ()):
        before.work.wait()
    parallel = get_parallel()
    sending = parallel.pp_group.send_object(message, dst=parallel.pp_rank + 1, async_send=True, tag=_TAG)
    setattr(scheduler, _SENDING, sending)
