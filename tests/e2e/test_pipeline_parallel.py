"""Sparse requests through pipeline stages: the first one drafts, and all of them do the same.

SGLang's own checker ends a server whose ranks differ in anything they do to the radix cache: it runs in every test here.
"""

import random
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.support.faults import plugin_on_path
from tests.support.mixture import assert_same_mixture
from tests.support.server import serve, sparse_options
from tests.support.streams import Stream, until
from tests.support.tiny_models import prompt_ids

CHECKED = {"SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": "1"}
SPARSE = {"spec_prefill_keep_ratio": 0.3}


@pytest.fixture(scope="module")
def server(pair_of, tmp_path_factory):
    """Two stages; most prompts here are drafted and prefilled in several chunks."""
    target, draft = pair_of("llama")
    options = [*sparse_options(draft), "--pp-size", "2", "--chunked-prefill-size", "128"]
    with serve(tmp_path_factory.mktemp("server"), target, *options, env=CHECKED) as running:
        yield running


def test_mixture(server, mixture_of):
    assert_same_mixture(server, mixture_of("llama"))


def test_aborts_while_the_first_stage_drafts(server):
    """Some are still undecided, some half prefilled, some decoding when they go; those beside them are answered."""
    server.flush()
    before = server.draft_pools()
    streams = [Stream(server, prompt_ids(900 + at, seed=at), SPARSE, 400) for at in range(8)]
    until(lambda: any(stream.times for stream in streams))
    for stream in streams[::2]:
        requests.post(server.url + "/abort_request", json={"rid": stream.rid}, timeout=60)
    requests.post(server.url + "/abort_request", json={"rid": "", "abort_all": True}, timeout=60)
    for stream in streams:
        stream.join()
    ends = [stream.last["meta_info"]["finish_reason"] for stream in streams if stream.last is not None]
    assert all(end is None or end["type"] == "abort" for end in ends)
    reply = server.generate(prompt_ids(500, seed=77), custom=SPARSE)
    assert reply["meta_info"]["spec_prefill"]["applied"]
    server.flush()
    assert server.draft_pools() == before
    assert server.load()["num_used_tokens"] == 0


def test_what_only_some_servers_can_do_is_refused(server):
    for field, value in (("revive_every", 4), ("backfill", "turn"), ("backfill", "answer")):
        body = {"input_ids": prompt_ids(90, seed=1), "sampling_params": {"custom_params": {f"spec_prefill_{field}": value}}}
        response = server.post("/generate", body)
        assert response.status_code == 400
        assert "the server was started with --pp-size 2" in response.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [("--pp-size", "3"), ("--tp", "2", "--pp-size", "2"), ("--pp-size", "2", "--pp-async-batch-depth", "1")]
)
def test_more_ranks(options, pair_of, mixture_of, tmp_path):
    """A stage between two others passes on what it hears; tensor-parallel ranks of a stage hear the same."""
    target, draft = pair_of("llama")
    with serve(tmp_path, target, *sparse_options(draft), *options, env=CHECKED) as server:
        assert_same_mixture(server, mixture_of("llama"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_other_families(family, pair_of, mixture_of, tmp_path):
    target, draft = pair_of(family)
    with serve(tmp_path, target, *sparse_options(draft), "--pp-size", "2", env=CHECKED) as server:
        assert_same_mixture(server, mixture_of(family))


_PROFILED = """
def register():
    from sglang.srt.managers.scheduler_components.dynamic_chunk_sizer import DynamicChunkSizer

    lengths = list(range(300, 0, -10))
    DynamicChunkSizer._profile_prefill_latency = lambda sizer: (lengths, [1e-4 * length**2 for length in lengths])
"""


@pytest.mark.slow
def test_dynamic_chunks(pair_of, mixture_of, tmp_path):
    """Kept tokens are prefilled in chunks that shrink as attention takes longer.

    Times are given: SGLang's profile reads ids that a tiny vocabulary does not have, and fits no parabola to noise.
    """
    target, draft = pair_of("llama")
    options = ["--pp-size", "2", "--enable-dynamic-chunking", "--chunked-prefill-size", "256"]
    env = plugin_on_path(tmp_path / "plugin", "profiled", _PROFILED)
    with serve(tmp_path, target, *sparse_options(draft), *options, env={**CHECKED, **env}) as server:
        assert "Predictor ready" in server.log.read_text()
        assert_same_mixture(server, mixture_of("llama"))
        seen = len(server.log.read_text())
        reply = server.generate(prompt_ids(2000, seed=9), custom={"spec_prefill_keep_ratio": 0.4})
        chunks = [
            int(tokens) for tokens in re.findall(r" PP0\] Prefill batch.*?#new-token: (\d+)", server.log.read_text()[seen:])
        ]
    assert sum(chunks) == reply["meta_info"]["spec_prefill"]["kept_tokens"]
    assert chunks[0] == 256
    assert len(chunks) > 4
    assert max(chunks[1:]) < 256


_UNDOING = """
def register():
    from sglang.srt.runtime_context import get_parallel
    from specprefill_sgl.hooks import followers, model

    repeat, sparse_state_of = followers._repeat, model.sparse_state_of

    def some(scheduler, req, event):
        if type(event).__name__ != {event!r}:
            repeat(scheduler, req, event)

    followers._repeat = some
    if not {event!r}:
        model.sparse_state_of = lambda req: None if get_parallel().pp_rank else sparse_state_of(req)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # streams of a server that ends
@pytest.mark.parametrize("event", ["Looked", "Decided", ""])
def test_a_stage_that_does_otherwise_is_found_out(event, pair_of, mixture_of, tmp_path):
    """It looks nothing up, decides nothing, or computes at other positions: the mixture shows each of them."""
    target, draft = pair_of("llama")
    env = plugin_on_path(tmp_path / "plugin", "undoing", _UNDOING.format(event=event))
    wanted = mixture_of("llama")
    options = [*sparse_options(draft), "--pp-size", "2"]
    with (
        serve(tmp_path, target, *options, env={**CHECKED, **env}) as server,
        pytest.raises((AssertionError, requests.RequestException)),
    ):
        assert_same_mixture(server, wanted)


@pytest.mark.slow
def test_conversations_while_prompts_are_evicted(pair_of, tmp_path):
    """Turns, repeated prompts and dense ones in a cache too small for them: the stages evict alike, and nothing leaks."""
    target, draft = pair_of("llama")
    options = [*sparse_options(draft), "--pp-size", "2", "--chunked-prefill-size", "128", "--max-total-tokens", "3000"]
    with serve(tmp_path, target, *options, env=CHECKED) as server:
        before = server.draft_pools()
        with ThreadPoolExecutor(6) as pool:
            hits = list(pool.map(lambda number: _converse(server, number), range(18)))
        assert sum(hits) > 0
        server.flush()
        assert server.load()["num_used_tokens"] == 0
        assert server.draft_pools() == before


def _converse(server, number: int) -> int:
    """Three turns, some asked twice, some of them dense; tokens found in the cache."""
    draw, ids, hits = random.Random(number), prompt_ids(300 + 40 * (number % 5), seed=number % 9), 0
    for turn in range(3):
        custom = draw.choice([SPARSE, SPARSE, {"spec_prefill": False}, {"spec_prefill_keep_ratio": 0.6}])
        for _ in range(draw.choice([1, 1, 2])):
            reply = server.generate(ids, custom=custom, params={"max_new_tokens": 24})
            hits += reply["meta_info"]["cached_tokens"]
        ids = [*ids, *reply["output_ids"], *prompt_ids(60, seed=100 * number + turn)]
    return hits
