"""Scheduling does not change answers: chunked prefill, mixed chunks, overlap, retraction, tensor parallel, batches of 32."""

import re

import pytest

from tests.support.answers import all_at_once, differences, mixed_requests, one_at_a_time
from tests.support.faults import Faults
from tests.support.server import serve, sparse_options

MODES = {
    "defaults": ([], {}),
    "no_chunked_prefill": (["--chunked-prefill-size", "-1"], {}),
    "small_chunks": (["--chunked-prefill-size", "128"], {}),
    "mixed_chunk": (["--chunked-prefill-size", "256", "--enable-mixed-chunk"], {}),
    "no_overlap": (["--disable-overlap-schedule", "--enable-priority-scheduling"], {}),
    "retraction": (
        ["--chunked-prefill-size", "256", "--enable-mixed-chunk", "--max-total-tokens", "5000"],
        {"SGLANG_TEST_RETRACT": "1"},
    ),
    "paged_pool": (["--page-size", "16"], {}),
    "tensor_parallel": (["--tp", "2"], {}),
}


@pytest.fixture(scope="module")
def requests_():
    return mixed_requests()


@pytest.fixture(scope="module")
def alone(pair_of, tmp_path_factory, requests_):
    """Replies of a server without radix cache, one request at a time."""
    target, draft = pair_of("llama")
    with serve(tmp_path_factory.mktemp("alone"), target, *sparse_options(draft), "--disable-radix-cache") as server:
        replies = one_at_a_time(server, requests_)
    assert sum(reply["meta_info"]["spec_prefill"]["applied"] for reply in replies) == len(replies) // 2
    return replies


@pytest.mark.parametrize("mode", MODES)
def test_32_at_once_answer_as_one_at_a_time(mode, alone, requests_, pair_of, tmp_path):
    options, env = MODES[mode]
    target, draft = pair_of("llama")
    faults = Faults(tmp_path / "faults")
    with serve(tmp_path, target, *sparse_options(draft), *options, env={**env, **faults.env}) as server:
        start = server.state()["spec_prefill"]
        replies = all_at_once(server, requests_)
        assert differences(replies, alone) == []
        assert differences(all_at_once(server, requests_), alone) == []  # again, now with a full radix cache
        if mode == "defaults":  # where several prompts fit one draft forward
            drafted_together = re.findall(r"Spec prefill batch, #prompt: (\d+)", server.log.read_text())
            assert max(map(int, drafted_together)) > 1
        if mode == "retraction":
            assert sum(reply["meta_info"]["num_retractions"] for reply in replies) > 0
        if mode == "tensor_parallel":
            _one_failing_rank_makes_both_dense(server, faults, requests_, alone)
        server.flush()
        assert server.load()["num_used_tokens"] == 0
        assert server.state()["spec_prefill"] == start


def _one_failing_rank_makes_both_dense(server, faults, requests, alone):
    """If the ranks disagreed, their KV lengths would differ and the next collective would hang."""
    index = next(i for i, reply in enumerate(alone) if reply["meta_info"]["spec_prefill"]["keep_ratio"] < 1)
    ids, custom = requests[index]
    faults.switch("score_on_rank_1")
    reply = server.generate(ids, custom=custom)
    assert reply["meta_info"]["spec_prefill"]["reason"] == "draft_error"
    faults.switch("score_on_rank_1", on=False)
    reply = server.generate(ids, custom=custom, params={"max_new_tokens": 12})
    assert differences([reply], [alone[index]]) == []
