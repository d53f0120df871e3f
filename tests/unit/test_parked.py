"""Hidden states of dropped tokens: each leaves once, and the oldest requests lose theirs first."""

from types import SimpleNamespace

import numpy as np
import torch

from specprefill_sgl.methods.lazy.aux_cache import AuxCache
from specprefill_sgl.methods.lazy.parked import Parked
from specprefill_sgl.methods.lazy.seats import admitted


class Req(SimpleNamespace):
    """What the cache asks of a request."""

    __hash__ = object.__hash__

    def finished(self):
        return self.has_ended


def _states(positions):
    return torch.tensor(positions, dtype=torch.float32)[:, None].expand(-1, 4).clone()


def test_tokens_leave_once_in_the_order_asked_for():
    parked = Parked()
    for positions in ([7, 3], [9, 1, 4]):
        parked.add(np.array(positions), _states(positions))
    assert parked.take(np.array([4, 7])).tolist() == _states([4, 7]).tolist()
    assert parked.positions.tolist() == [3, 9, 1]
    assert parked.take(np.array([1, 3, 9])).tolist() == _states([1, 3, 9]).tolist()
    assert (len(parked.positions), parked.n_bytes) == (0, 0)


def _held(cache, req, tokens, *, is_read=True):
    pruned = admitted(1, 0, req.retraction_count, None)
    pruned.parked[1].add(np.arange(tokens), _states(list(range(tokens))))
    pruned.is_read = is_read
    cache.add(req, pruned)
    return pruned


def _req(**fields):
    return Req(**{"retraction_count": 0, "has_ended": False, **fields})


def test_the_oldest_that_is_read_goes_first():
    cache, reqs = AuxCache(16 * 10), [_req() for _ in range(3)]
    held = [_held(cache, req, 5, is_read=at > 0) for at, req in enumerate(reqs)]
    cache.make_room()
    assert [one.n_bytes for one in held] == [80, 0, 80]


def test_what_ended_or_was_retracted_is_let_go():
    cache, reqs = AuxCache(10**6), [_req() for _ in range(4)]
    held = [_held(cache, req, 5) for req in reqs]
    reqs[0].has_ended, reqs[1].retraction_count = True, 1
    del reqs[2]
    cache.sweep()
    assert [one.n_bytes for one in held] == [0, 0, 0, 80]
    assert cache.n_bytes == 80
