"""Queries of a graph: what `forward` saw while it was captured is what each replay writes anew."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.model_executor.runner_utils.capture_mode import model_capture_mode

from specprefill_sgl.draft.capture import QueryCapture

HEADS, DIM = 2, 4


class _Backend:
    def forward(self, q, *_):
        return q


def _layer(layer_id, *, cross=False):
    return SimpleNamespace(layer_id=layer_id, tp_q_head_num=HEADS, qk_head_dim=DIM, is_cross_attention=cross)


def _forward(capture, queries):
    for layer_id, q in queries.items():
        capture.forward(q, None, None, _layer(layer_id), None)


def _queries(rows):
    return {layer_id: torch.randn(rows, HEADS * DIM) for layer_id in (0, 3)}


@pytest.fixture
def capture():
    return QueryCapture(_Backend())


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
