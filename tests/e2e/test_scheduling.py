"""Scheduling does not change answers: chunked prefill, mixed chunks, overlap, retraction, tensor parallel, batches of 32."""

import re

import pytest

from tests.support.answers import Judge, all_at_once, mixed_requests
from tests.support.faults import Faults
from tests.support.server import serve, sparse_options
from tests.support.tiny_models import prompt_ids

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
def judge(pair_of, hugging_face):
    return Judge(*map(hugging_face, pair_of("llama")))


@pytest.mark.parametrize("mode", MODES)
def test_32_at_once_are_all_right(mode, judge, requests_, pair_of, tmp_path):
    options, env = MODES[mode]
    target, draft = pair_of("llama")
    faults = Faults(tmp_path / "faults")
    with serve(tmp_path, target, *sparse_options(draft), *options, env={**env, **faults.env}) as server:
        start = server.draft_pools()
        faults.switch("slow_step", on=mode == "no_chunked_prefill")  # so that prompts wait together
        replies = all_at_once(server, requests_)
        faults.switch("slow_step", on=False)
        assert judge.wrong(replies, requests_) == []
        assert judge.wrong(all_at_once(server, requests_), requests_) == []  # again, now with a full radix cache
        if mode == "no_chunked_prefill":  # where any two prompts fit one draft forward
            drafted_together = re.findall(r"Spec prefill batch, .*#prompt: (\d+)", server.log.read_text())
            assert max(map(int, drafted_together)) > 1
        if mode == "retraction":
            assert sum(reply["meta_info"]["num_retractions"] for reply in replies) > 0
        if mode == "tensor_parallel":
            _one_failing_rank_makes_both_dense(server, faults, judge)
            _a_rank_that_does_not_decide_may_fail(server, faults, judge)
        server.flush()
        assert server.load()["num_used_tokens"] == 0
        assert server.draft_pools() == start


def _one_failing_rank_makes_both_dense(server, faults, judge):
    """If the ranks disagreed, their KV lengths would differ and the next collective would hang."""
    ids, custom = prompt_ids(700, seed=123), {"spec_prefill_keep_ratio": 0.2, "spec_prefill_return_positions": True}
    faults.switch("score_on_rank_1")
    reply = server.generate(ids, custom=custom)
    assert reply["meta_info"]["spec_prefill"]["reason"] == "draft_error"
    faults.switch("score_on_rank_1", on=False)
    server.flush()
    reply = server.generate(ids, custom=custom, params={"max_new_tokens": 12})
    assert judge.wrong([reply], [(ids, custom)]) == []


def _a_rank_that_does_not_decide_may_fail(server, faults, judge):
    """Rank 0 selects, from votes that are joined by then."""
    ids, custom = prompt_ids(720, seed=124), {"spec_prefill_keep_ratio": 0.2, "spec_prefill_return_positions": True}
    faults.switch("join_on_rank_1")
    reply = server.generate(ids, custom=custom, params={"max_new_tokens": 12})
    faults.switch("join_on_rank_1", on=False)
    assert reply["meta_info"]["spec_prefill"]["applied"]
    assert judge.wrong([reply], [(ids, custom)]) == []
    assert "the first rank's counts" in server.log.read_text()
