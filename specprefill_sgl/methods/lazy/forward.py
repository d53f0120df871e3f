"""The target's forward of a batch with lazy requests: part by part, each with the tokens that are still in.

Part 0 runs on everything. In front of each stage, a part after it, the tokens of a lazy request are parked, and those that go
on leave again at once. A prompt whose chunks are not all there yet has no survivors: it sends one token to SGLang's padding
slot, so that a batch has the same requests in every part. Other requests send all their tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from specprefill_sgl.methods.lazy.aux_cache import AuxCache, let_go
from specprefill_sgl.methods.lazy.batches import Piece, decoded, extended
from specprefill_sgl.methods.lazy.chooser import Chooser
from specprefill_sgl.methods.lazy.seats import Seat
from specprefill_sgl.methods.lazy.segments import Queries, Segments
from specprefill_sgl.request import eligibility

Seats = Sequence[Seat | None]
_PADDING_SLOT = 0  # SGLang's, for what nobody reads
_NOWHERE = 2**62


class Forward:
    """Extends and decodes of batches of which some requests are lazy.

    Parameters
    ----------
    table : int32 [rows, context]
        The request table; of `own_rows` rows of SGLang's, those of each stage follow.
    own_rows, stages : int
    segments : Segments
    chooser : Chooser
    aux_cache : AuxCache
    on_pruned : callable
        Told of a seat, of a stage that has chosen, and fields of the outcome.
    on_asked : callable
        Told how many tokens returned when an answer was asked.
    """

    def __init__(
        self,
        table: torch.Tensor,
        own_rows: int,
        stages: int,
        segments: Segments,
        chooser: Chooser,
        aux_cache: AuxCache,
        on_pruned: Callable[..., None],
        on_asked: Callable[[int], None],
    ):
        self._table, self._own_rows, self._stages = table, own_rows, stages
        self._segments, self._chooser, self._aux_cache = segments, chooser, aux_cache
        self._on_pruned, self._on_asked = on_pruned, on_asked

    def extend(self, batch: Any, seats: Seats) -> Any:
        """Prompts, whole or a chunk of them: `ModelRunnerOutput`."""
        spans = list(zip(batch.extend_prefix_lens_cpu, batch.extend_seq_lens_cpu, strict=True))
        ends = np.cumsum([length for _, length in spans])
        positions = [np.arange(start, start + length) for start, length in spans]
        rows = self._voters(0, seats, positions)
        output, queries = self._segments.run(0, batch, None, rows)
        self._remember(0, seats, positions, queries)
        cuts = [slice(int(end) - length, int(end)) for end, (_, length) in zip(ends, spans, strict=True)]
        pieces = [
            Piece(0, start, batch.positions[cut], batch.out_cache_loc[cut], output[cut])
            for cut, (start, _) in zip(cuts, spans, strict=True)
        ]
        for stage in range(1, self._stages + 1):
            for at, seat in enumerate(seats):
                if seat is not None:
                    pieces[at], positions[at] = self._enter(stage, seat, positions[at], pieces[at])
            hidden = torch.cat([piece.hidden for piece in pieces])
            rows = self._voters(stage, seats, positions)
            view = extended(batch, pieces)
            output, queries = self._segments.run(stage, view, hidden, rows, to_end=stage == self._stages)
            if stage < self._stages:
                self._remember(stage, seats, positions, queries)
                split = output.split([len(piece.positions) for piece in pieces])
                pieces = [piece._replace(hidden=own) for piece, own in zip(pieces, split, strict=True)]
        self._is_read(seats)
        return output

    def decode(self, batch: Any, seats: Seats) -> Any:
        """One token of each request: `ModelRunnerOutput`."""
        for seat in seats:
            if seat is not None and _is_due(seat):
                self._return(batch, seat)
        asking = [seat if seat is not None and seat.may_return else None for seat in seats]
        positions = [np.array([0 if seat is None else seat.end - 1]) for seat in seats]
        rows = _rows([slice(at, at + 1) for at, seat in enumerate(asking) if seat is not None], batch.seq_lens.device)
        hidden = None
        for stage in range(self._stages + 1):
            view = batch
            if stage:
                above = [0 if seat is None else stage * self._own_rows for seat in seats]
                dropped = [0 if seat is None else seat.pruned.dropped[stage] for seat in seats]
                view = decoded(batch, above, dropped)
                self._table[view.req_pool_indices, view.seq_lens - 1] = batch.out_cache_loc.to(self._table.dtype)
            is_end = stage == self._stages
            output, queries = self._segments.run(stage, view, hidden, None if is_end else rows, to_end=is_end)
            if not is_end:
                self._remember(stage, asking, positions, queries)
                hidden = output
        return output

    def _voters(self, part: int, seats: Seats, positions: Sequence[np.ndarray]) -> torch.Tensor | None:
        """Rows of a part's tokens whose queries vote in front of the next stage: the last tokens of prompts; None if none."""
        if part == self._stages:
            return None
        offsets = np.cumsum([0, *(len(own) for own in positions)])
        each = zip(seats, positions, offsets[:-1], strict=True)
        rows = np.concatenate([offset + _window(part, seat, own) for seat, own, offset in each])
        return torch.from_numpy(rows).to(self._table.device) if len(rows) else None

    def _remember(self, part: int, seats: Seats, positions: Sequence[np.ndarray], queries: Queries) -> None:
        """Keep the queries of a part that vote, by request."""
        at = 0
        for seat, own in zip(seats, positions, strict=True):
            voters = own[_window(part, seat, own)] if seat is None or not seat.pruned.is_read else own
            if seat is None or not len(voters):
                continue
            for layer in self._chooser.voting(part + 1, seat.state.rule):
                seat.pruned.queries.setdefault(layer, []).append(queries[layer][at : at + len(voters)])
                seat.pruned.voters.setdefault(layer, []).extend(voters.tolist())
            at += len(voters)

    def _enter(self, stage: int, seat: Seat, positions: np.ndarray, piece: Piece) -> tuple[Piece, np.ndarray]:
        """What of a request's tokens goes on into a stage, and their positions; the rest stays parked."""
        pruned, above = seat.pruned, stage * self._own_rows
        if not seat.is_last:
            if stage == 1:
                pruned.parked[1].add(positions, piece.hidden)
            self._table[seat.row + above, 0] = _PADDING_SLOT
            one = slice(len(piece.positions) - 1, None)
            slot = torch.full_like(piece.slots[one], _PADDING_SLOT)
            return Piece(above, 0, piece.positions[one], slot, piece.hidden[one]), np.array([_NOWHERE])
        pruned.parked[stage].add(positions, piece.hidden)
        going = self._survivors(stage, seat, pruned.parked[stage].positions)
        self._table[seat.row + above, : pruned.start] = self._table[seat.row, : pruned.start]  # what the radix cache had
        return self._leave(stage, seat, going, pruned.start, seat.end), going

    def _survivors(self, stage: int, seat: Seat, waiting: np.ndarray) -> np.ndarray:
        """Those of the tokens in front of a stage that go on at once, ascending. What was answered always does."""
        pruned, n_prompt = seat.pruned, seat.prompt_tokens
        cached = np.arange(min(pruned.start, n_prompt))
        present = np.union1d(cached, waiting[waiting < n_prompt])
        if not len(pruned.kept[stage]) and len(present) > len(cached):
            found = self._chooser.chosen(stage, seat, present)
            pruned.kept[stage] = present if found is None else found.positions
            failed = {"reason": eligibility.DRAFT_ERROR}
            self._on_pruned(seat, stage, **failed if found is None else {"scores": found.scores, "votes": found.votes})
        pruned.kept[stage] = np.union1d(pruned.kept[stage], cached)
        return np.sort(waiting[np.isin(waiting, pruned.kept[stage]) | (waiting >= n_prompt)])

    def _leave(self, stage: int, seat: Seat, going: np.ndarray, prefix: int, end: int) -> Piece:
        """Parked tokens go on into a stage, which has so many already, of a sequence up to `end`."""
        table, above = self._table, stage * self._own_rows
        positions = torch.from_numpy(going).to(table.device)
        slots = table[seat.row, positions]
        table[seat.row + above, prefix : prefix + len(going)] = slots
        seat.pruned.dropped[stage] = end - prefix - len(going)
        return Piece(above, prefix, positions, slots.long(), seat.pruned.parked[stage].take(going))

    def _is_read(self, seats: Seats) -> None:
        for seat in seats:
            if seat is not None and seat.is_last:
                seat.pruned.is_read = True
                if not seat.may_return:
                    let_go(seat.pruned)
        self._aux_cache.make_room()

    def _return(self, batch: Any, seat: Seat) -> None:
        """What the answer asks for runs through the stages it is not in, before the token that is decoded now."""
        pruned, state, returned = seat.pruned, seat.state, 0
        row = torch.tensor([seat.row], dtype=batch.req_pool_indices.dtype, device=self._table.device)
        state.asked.append(seat.said)
        for stage in range(1, self._stages + 1):
            below = np.union1d(pruned.kept[stage], pruned.parked[stage].positions)
            going = self._chooser.asked_for(stage, seat, below)
            if going is None or not len(going):
                continue
            before = seat.end - 1 - pruned.dropped[stage]
            piece = self._leave(stage, seat, going, before, seat.end - 1)
            pruned.kept[stage] = np.union1d(pruned.kept[stage], going)
            output, _ = self._segments.run(stage, extended(batch, [piece], row), piece.hidden, None)
            if stage < self._stages:
                pruned.parked[stage + 1].add(going, output)
            returned = max(returned, len(going))
            self._on_pruned(seat, stage)
        self._on_asked(returned)
        if returned:
            state.revived.append((seat.said, returned))
        if not seat.may_return:
            let_go(pruned)
            pruned.queries.clear()
            pruned.voters.clear()
        state.pause = seat.every if returned else 2 * (state.pause or seat.every)
        self._aux_cache.make_room()


def _window(part: int, seat: Seat | None, positions: np.ndarray) -> np.ndarray:
    """Which of a request's tokens vote in front of the next stage, once it is read."""
    if seat is None or seat.pruned.is_read or len(seat.pruned.kept[part + 1]):
        return np.arange(0)
    first = seat.prompt_tokens - seat.state.rule.window
    return np.flatnonzero((positions >= first) & (positions < seat.prompt_tokens))


def _is_due(seat: Seat) -> bool:
    """Whether the answer is asked now what it lacks."""
    said = seat.said - 1  # the token that is fed now was not read yet
    asked = seat.state.asked[-1] - 1 if seat.state.asked else 0
    has_voters = bool(seat.pruned.voters)  # not at once after a retraction
    return has_voters and seat.may_return and said - asked >= (seat.state.pause or seat.every)


def _rows(cuts: Sequence[slice], device: torch.device) -> torch.Tensor | None:
    rows = [at for cut in cuts for at in range(cut.start, cut.stop)]
    return torch.tensor(rows, dtype=torch.int64, device=device) if rows else None
