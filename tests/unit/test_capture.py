"""Queries of a graph: what `forward` saw while it was captured is what each replay writes anew."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.model_executor.runner_utils.capture_mode import model_capture_mode

from specprefill_sgl.models.capture import QueryCapture
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
NUMBERS = {0: 3, 1: 0}  # number -> layer_id


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
    assert sorted(taken) == sorted(NUMBERS)
    assert all(torch.equal(taken[one], queries[NUMBERS[one]].view(5, HEADS, DIM)[[4, 1]]) for one in taken)
    assert capture.disarm() == {}


def test_layers_that_share_a_layer_id_keep_their_queries_apart(capture):
    """Gemma 4's layers that read the keys of another, the two attentions of a latent layer."""
    one, other = _layer(5), _layer(5)
    q = torch.randn(2, 1, HEADS * DIM)
    capture.arm(torch.tensor([0]))
    for layer, rows in ((one, q[0]), (other, q[1])):
        capture.forward(rows, None, None, layer, None)
    taken = capture.disarm()
    assert [capture.layers[number].layer_id for number in taken] == [5, 5]
    assert torch.equal(torch.stack(list(taken.values())), q.view(2, 1, HEADS, DIM))


def test_sinks_are_recorded_with_the_queries(capture):
    sinks = torch.randn(HEADS)
    capture._backend.forward = lambda q, *_, **options: options["sinks"]
    capture.arm(torch.tensor([0]))
    assert capture.forward(torch.randn(1, HEADS * DIM), None, None, LAYERS[3], None, sinks=sinks) is sinks
    assert capture.sinks == {0: sinks}


def test_linear_layers_are_handed_on(capture):
    """They call with keywords of their own and have no queries."""
    capture._backend.forward = lambda **options: options
    linear, batch = SimpleNamespace(layer_id=1), object()
    capture.arm(torch.tensor([0]))
    assert capture.forward(layer=linear, forward_batch=batch, mixed_qkv=3) == {
        "layer": linear,
        "forward_batch": batch,
        "save_kv_cache": True,
        "mixed_qkv": 3,
    }
    assert capture.disarm() == {}
    assert capture.layers == {}


def test_models_see_the_backend_they_ask_for(capture):
    """Some assert that their attention backend is the hybrid one."""
    assert isinstance(capture, _Backend)


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
    assert sorted(first) == sorted(NUMBERS)
    assert all(torch.equal(first[one], expected[NUMBERS[one]]) for one in first)
    assert {one: layer.layer_id for one, layer in capture.layers.items()} == NUMBERS


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
