"""Queries recorded under a real CUDA graph: every replay's are new, whatever other graphs share its memory."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sglang", reason="a GPU machine without SGLang runs the tests of the kernels alone")

from sglang.srt.model_executor.runner_utils.capture_mode import model_capture_mode

from specprefill_sgl.models.capture import QueryCapture

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LAYERS, HEADS, DIM = 6, 4, 32


class _Backend:
    def forward(self, q, *_):
        return torch.softmax(q, dim=-1)


def test_replays_of_graphs_that_share_memory():
    torch.manual_seed(0)
    weights = torch.randn(LAYERS, HEADS * DIM, HEADS * DIM, device="cuda")
    capture = QueryCapture(_Backend(), pool=None)
    layers = [
        SimpleNamespace(layer_id=layer_id, tp_q_head_num=HEADS, qk_head_dim=DIM, is_cross_attention=False)
        for layer_id in range(LAYERS)
    ]

    def model(x):
        seen = []
        for layer, weight in zip(layers, weights, strict=True):
            q = x @ weight
            seen.append(q)
            x = capture.forward(q, None, None, layer, None)
        return x, seen

    pool, graphs = torch.cuda.graph_pool_handle(), {}
    for size in (8, 4, 1):
        x = torch.zeros(size, HEADS * DIM, device="cuda")
        with model_capture_mode():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                model(x)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                model(x)
        graphs[size] = graph, x
    for size, rows in ((4, 3), (1, 1), (8, 8), (4, 4)):
        graph, x = graphs[size]
        x.normal_()
        _, expected = model(x)
        graph.replay()
        for number, q in capture.replayed(rows).items():
            torch.testing.assert_close(q, expected[number].view(size, HEADS, DIM)[:rows])
