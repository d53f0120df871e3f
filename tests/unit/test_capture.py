"""Queries of a graph: what `forward` saw while it was captured is what each replay writes anew."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.model_executor.runner_utils.capture_mode import model_capture_mode

from specprefill_sgl.draft.capture import QueryCapture
from tests.support.device import DEVICE

HEADS, DIM, V_DIM = 2, 4, 3


class _Backend:
    """Counts the layers it is asked for; writes nothing."""

    def __init__(self):
        self.asked = []

    def forward(self, q, k, v, layer, *_):
        self.asked.append(layer.layer_id)
        return q


def _layer(layer_id, *, cross=False):
    return SimpleNamespace(layer_id=layer_id, tp_q_head_num=HEADS, qk_head_dim=DIM, v_head_dim=V_DIM, is_cross_attention=cross)


LAYERS = {layer_id: _layer(layer_id) for layer_id in (3, 0)}  # in the order of a forward


def _forward(capture, queries):
    for layer_id, q in queries.items():
        capture.forward(q, None, None, LAYERS[layer_id], None)


def _queries(rows):
    return {layer_id: torch.randn(rows, HEADS * DIM) for layer_id in LAYERS}


@pytest.fixture
def capture():
    return QueryCapture(_Backend(), _pool())


def _pool(kind=MHATokenToKVPool):
    sizes = {"size": 16, "page_size": 1, "head_num": 1, "head_dim": DIM, "v_head_dim": V_DIM, "layer_num": 4}
    return kind(**sizes, dtype=torch.float32, device=DEVICE, enable_memory_saver=False)


def test_rows_are_recorded_while_armed_only(capture):
    queries = _queries(5)
    _forward(capture, queries)
    capture.arm(torch.tensor([4, 1]))
    capture.forward(torch.randn(5, HEADS * DIM), None, None, _layer(7, cross=True), None)
    _forward(capture, queries)
    taken = capture.disarm()
    assert sorted(taken) == [0, 3]
    assert all(torch.equal(taken[layer], queries[layer].view(5, HEADS, DIM)[[4, 1]]) for layer in taken)
    assert capture.disarm() == {}


@pytest.mark.parametrize(("wanted", "size"), [(1, 1), (2, 4), (4, 4), (5, 8)])
def test_a_replay_of_the_smallest_graph_that_fits(capture, wanted, size):
    graphs = {rows: _queries(rows) for rows in (8, 4, 1)}
    with model_capture_mode():
        for queries in graphs.values():
            _forward(capture, _queries(len(queries[0])))  # SGLang warms up before it captures
            _forward(capture, queries)
    for q in graphs[size].values():  # as a replay does
        q.normal_()
    first = capture.replayed(wanted)
    expected = {layer: q.view(size, HEADS, DIM)[:wanted].clone() for layer, q in graphs[size].items()}
    for q in graphs[size].values():  # the next replay must not reach what was taken
        q.zero_()
    assert sorted(first) == [0, 3]
    assert all(torch.equal(first[layer], expected[layer]) for layer in first)
    assert sorted(capture.layers) == [0, 3]


class _OtherPool(MHATokenToKVPool):
    """Stands for pools that want more than a plain write."""


@pytest.mark.parametrize("written_by_the_model", [False, True])
@pytest.mark.parametrize(
    ("kind", "seen", "asked"), [(MHATokenToKVPool, True, [3]), (MHATokenToKVPool, False, [3, 0]), (_OtherPool, True, [3, 0])]
)
def test_without_rows_the_last_layer_writes_and_attends_to_nothing(kind, seen, asked, written_by_the_model):
    backend, pool = _Backend(), _pool(kind)
    capture = QueryCapture(backend, pool)
    if seen:
        capture.arm(torch.tensor([0]))
        _forward(capture, _queries(1))
        capture.disarm()
    backend.asked.clear()
    batch = SimpleNamespace(out_cache_loc=torch.tensor([7, 2, 9], device=DEVICE), out_cache_loc_is_physical=True)
    q, k, v = (torch.randn(3, *shape, device=DEVICE) for shape in ((HEADS * DIM,), (1, DIM), (1, V_DIM)))
    capture.arm(None)
    answers = {number: capture.forward(q, k, v, layer, batch, not written_by_the_model) for number, layer in LAYERS.items()}
    assert capture.disarm() == {}
    assert backend.asked == asked
    assert torch.equal(answers[3], q)
    if 0 not in asked:
        assert torch.equal(pool.get_key_buffer(0)[batch.out_cache_loc], 0 * k if written_by_the_model else k)
        assert torch.equal(pool.get_value_buffer(0)[batch.out_cache_loc], 0 * v if written_by_the_model else v)
        assert torch.equal(answers[0], torch.zeros(3, HEADS * V_DIM, device=DEVICE))
    backend.asked.clear()
    _forward(capture, _queries(2))
    assert backend.asked == [3, 0]  # nobody said that nothing is wanted


def test_a_graph_is_captured_whole(capture):
    capture.arm(torch.tensor([0]))
    _forward(capture, _queries(1))
    capture.arm(None)
    capture._backend.asked.clear()
    with model_capture_mode():
        _forward(capture, _queries(2))
    assert capture._backend.asked == [3, 0]
