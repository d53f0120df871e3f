"""Which tokens go on into a stage, by attention in the layers below it: the same on every rank."""

import logging
import math
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import torch

from specprefill_sgl.methods.lazy.heads import between
from specprefill_sgl.methods.lazy.seats import Seat
from specprefill_sgl.methods.lazy.segments import Queries, Segments
from specprefill_sgl.models.ranks import Ranks
from specprefill_sgl.models.recording import Recording
from specprefill_sgl.request.prompts import Cast, Prompt
from specprefill_sgl.scoring.voting import own_heads, votes_of
from specprefill_sgl.selection.first_layers import VOTING_PART, last_part
from specprefill_sgl.selection.rule import Heads, Rule

logger = logging.getLogger(__name__)

Select = Callable[[Sequence[Prompt], Sequence[Cast]], Sequence[Any]]
_ABSENT = -1.0  # a vote on what is not in the layers that vote: less than any


class Chooser:
    """Scores and selects in front of each stage.

    Parameters
    ----------
    runner : ModelRunner
        The target's.
    segments : Segments
    bounds : tuple of int
        First layer of each part, and the number of layers.
    exponents : sequence of float
        Of each stage: it keeps the keep ratio to this power.
    ranks : Ranks
    select : callable
        Of prompts with their votes (`stage.selecting.select`).
    """

    def __init__(
        self,
        runner: Any,
        segments: Segments,
        bounds: tuple[int, ...],
        exponents: Sequence[float],
        ranks: Ranks,
        select: Select,
    ):
        self._runner, self._segments, self._bounds, self._exponents = runner, segments, bounds, exponents
        self._ranks, self._select = ranks, select

    def voting(self, stage: int, rule: Rule) -> Sequence[int]:
        """Layers whose queries vote in front of a stage: those of its heads, else the last quarter of those below it."""
        if heads := self._heads(stage, rule):
            return sorted({layer for layer, _ in heads})
        first, end = self._bounds[stage - 1 : stage + 1]
        return range(max(first, last_part(range(end), VOTING_PART)[0]), end)

    def chosen(self, stage: int, seat: Seat, present: np.ndarray) -> Any:
        """Of a prompt that is read up to a stage: what goes on.

        Parameters
        ----------
        present : int64 [tokens]
            Prompt positions that are in the layers that vote, ascending.

        Returns
        -------
        Selected or None
            Its positions are present ones; None if it failed, on any rank.
        """
        prompt = _with_sinks(seat.prompt())
        ratio = prompt.keep_ratio ** self._exponents[stage - 1]
        prompt = msgspec.structs.replace(prompt, keep_ratio=ratio, cached=min(seat.pruned.start, len(prompt.ids)))
        return self._selected(stage, seat, prompt, present, absent=_ABSENT)

    def asked_for(self, stage: int, seat: Seat, present: np.ndarray) -> np.ndarray | None:
        """Of a request that decodes: what its answer asks for and is not in the stage, int64 [tokens]; None if it failed."""
        kept = seat.pruned.kept[stage]
        prompt = _with_sinks(seat.prompt())
        prompt = msgspec.structs.replace(
            prompt,
            keep_ratio=prompt.keep_ratio ** self._exponents[stage - 1],
            kept=kept,
            answer=array("q", [0]),  # there is one
            most_revived=seat.chunks,
            return_votes=False,
        )
        found = self._selected(stage, seat, prompt, present, absent=0.0)
        return None if found is None else np.setdiff1d(found.positions, kept)

    def _heads(self, stage: int, rule: Rule) -> Heads | None:
        """Whose mean votes in front of a stage, of all ranks: the last layer's below it, or calibrated ones; None: nobody's."""
        first, end = self._bounds[stage - 1 : stage + 1]
        if rule.over_heads == "mean":
            return tuple((end - 1, head) for head in range(self._runner.model_config.num_attention_heads))
        return between(rule.heads or (), first, end) or None

    def _selected(self, stage: int, seat: Seat, prompt: Prompt, present: np.ndarray, *, absent: float) -> Any:
        error, chosen = None, None
        try:
            cast = self._votes(stage, seat, prompt, present)
        except Exception as exception:
            error = f"{type(exception).__name__}: {exception}"
            logger.exception("Speculative prefill: scoring failed; nothing is dropped.")
        if self._ranks.any_error(error) is not None:
            return None
        try:
            votes = self._joined(cast, prompt.rule, stage)
            votes = _spread(votes, present, len(prompt.ids), absent)
            if self._ranks.is_first:
                one = self._select([prompt], [cast._replace(votes=votes)])[0]
                chosen = one._replace(positions=np.intersect1d(one.positions, present))
        except Exception:
            logger.exception("Speculative prefill: selection failed; nothing is dropped.")
        return self._ranks.from_first(chosen)

    def _votes(self, stage: int, seat: Seat, prompt: Prompt, present: np.ndarray) -> Cast:
        """This rank's, float32 [votes, present]."""
        queries, voters = seat.pruned.take_queries(self.voting(stage, prompt.rule))
        table = self._runner.req_to_token_pool.req_to_token
        on_device = torch.from_numpy(present).to(table.device)
        compact = [bisect_left(present, one) for one in voters]  # of those behind the prompt: all of it is before them
        recording = Recording(queries, table[seat.row, on_device].long(), len(voters), [-1] * len(voters), compact)
        begin, end = (bisect_left(present, one) for one in prompt.counted)
        layers = self._segments.layers
        model = _Layers(self._runner, {number: layers[number] for number in queries})
        heads = self._heads(stage, prompt.rule)
        own = None if heads is None else own_heads(heads, self._ranks.rank, lambda layer: layers[layer].tp_q_head_num)
        (found,) = votes_of(model, [recording], pool_kernel=prompt.rule.pool_kernel, counted=[(begin, end)], heads=own)
        return Cast(found, len(voters), recording.tokens, list(voters))

    def _joined(self, cast: Cast, rule: Rule, stage: int) -> torch.Tensor:
        """Over the heads of all ranks: the mean of those that count, or the maximum."""
        heads = self._heads(stage, rule)
        return self._ranks.maximum(cast.votes) if heads is None else self._ranks.total(cast.votes) / len(heads)


def _with_sinks(prompt: Prompt) -> Prompt:
    """Where attention sinks do not count, they are kept.

    The layers below made a sink of the prompt's first token, and those above look for it. No other takes its place, as the
    first of the kept tokens does where all layers lack the same ones.
    """
    return msgspec.structs.replace(prompt, keep_first=max(prompt.keep_first, prompt.rule.ignore_first))


class _Layers:
    """The target's voting layers, as `scoring.voting` reads them."""

    def __init__(self, runner: Any, own: Queries):
        self._pool, self.device, self.own = runner.token_to_kv_pool, torch.device(runner.device), own

    def voting_layers(self, _read_tokens: int) -> dict[int, Any]:
        return self.own

    def sinks(self, _number: int) -> None:
        return None

    def keys(self, layer: Any) -> torch.Tensor:
        return self._pool.get_key_buffer(layer.layer_id)

    def slots(self, _layer: Any, slots: torch.Tensor) -> torch.Tensor:
        return slots


def _spread(votes: torch.Tensor, present: np.ndarray, tokens: int, absent: float) -> torch.Tensor:
    """Votes on what is present, as votes on a prompt of so many tokens: [votes, tokens]."""
    whole = votes.new_full((len(votes), tokens), absent)
    whole[:, torch.from_numpy(present).to(votes.device)] = votes
    return whole


def exponents(keep_by_layer: Sequence[float] | None, stages: int) -> list[float]:
    """To which power of the keep ratio each stage keeps; the last to the first power."""
    if keep_by_layer is None:
        return [stage / stages for stage in range(1, stages + 1)]
    return [math.log(one) / math.log(keep_by_layer[-1]) for one in keep_by_layer]
