"""A long prompt's draft runs chunk by chunk: others decode and are prefilled in between, and nothing is lost."""

import time

import pytest
import requests

from tests.support.faults import Faults
from tests.support.server import serve, sparse_options
from tests.support.streams import Stream, until
from tests.support.tiny_models import prompt_ids

CHUNK, LONG = 128, 2000
SPARSE, DENSE = {"spec_prefill_keep_ratio": 0.2}, {"spec_prefill": False}


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module", params=[[], ["--disable-overlap-schedule"]], ids=["overlap", "no overlap"])
def server(request, pair_of, faults, tmp_path_factory):
    target, draft = pair_of("llama")
    options = [*sparse_options(draft), "--chunked-prefill-size", str(CHUNK), *request.param]
    with serve(tmp_path_factory.mktemp("server"), target, *options, env=faults.env) as running:
        yield running


@pytest.fixture
def slow_draft(server, faults):
    """Every draft forward takes 0.2 s more, so that what happens in between can be seen."""
    server.flush()
    faults.switch("slow_step")
    yield
    faults.switch("slow_step", on=False)
    server.flush()
    assert server.load()["num_used_tokens"] == 0
    state = server.state()["spec_prefill"]
    assert state["draft_available_tokens"] == state["draft_max_tokens"]


def test_running_requests_decode_between_the_chunks_of_a_draft(server, slow_draft):
    running = Stream(server, prompt_ids(40, seed=1), DENSE, 400)
    until(lambda: running.times)
    sent = time.monotonic()
    long = Stream(server, prompt_ids(LONG, seed=2), SPARSE, 4)
    long.join()
    between = [at for at in running.times if sent < at < long.times[0]]
    requests.post(server.url + "/abort_request", json={"rid": running.rid}, timeout=30)
    running.join()
    assert long.last["meta_info"]["spec_prefill"]["applied"]
    assert len(between) >= LONG // CHUNK - 1


def test_a_short_dense_prompt_overtakes_a_long_draft(server, slow_draft):
    long = Stream(server, prompt_ids(LONG, seed=3), SPARSE, 4)
    time.sleep(0.5)
    short = server.generate(prompt_ids(40, seed=4), custom=DENSE)
    done = time.monotonic()
    long.join()
    assert len(short["output_ids"]) == 8
    assert done < long.times[0]


def test_a_long_dense_prompt_does_not_overtake_a_draft(server, slow_draft):
    """It would be prefilled in fewer steps than the draft takes, yet in more than this client can take for one."""
    sparse = Stream(server, prompt_ids(LONG, seed=6), SPARSE, 4)
    time.sleep(0.5)
    dense = Stream(server, prompt_ids(8 * CHUNK, seed=7), DENSE, 4)
    sparse.join()
    dense.join()
    assert sparse.times[0] < dense.times[0]


def test_drafts_are_first_come_first_served(server, slow_draft):
    streams = []
    for number in range(3):
        streams.append(Stream(server, prompt_ids(700 - 200 * number, seed=10 + number), SPARSE, 4))
        time.sleep(0.15)
    for stream in streams:
        stream.join()
    assert streams == sorted(streams, key=lambda stream: stream.times[0])


def test_an_abort_in_the_middle_of_a_draft_ends_it(server, slow_draft):
    """The draft of 16 chunks would go on for 3 seconds; the next request must not wait for it."""
    long = Stream(server, prompt_ids(LONG, seed=5), SPARSE, 4)
    time.sleep(0.7)
    requests.post(server.url + "/abort_request", json={"rid": long.rid}, timeout=30)
    long.join()
    assert long.last is None or long.last["meta_info"]["finish_reason"]["type"] == "abort"
    start = time.monotonic()
    until(lambda: server.load()["num_waiting_reqs"] == 0)
    server.flush()
    assert time.monotonic() - start < 2


def test_interleaved_drafts_answer_as_drafts_alone(server):
    """Twelve requests at once, some dense, equal to one at a time."""
    prompts = [(prompt_ids(150 + 170 * number, seed=30 + number), DENSE if number % 3 == 0 else SPARSE) for number in range(12)]
    wanted = []
    for ids, custom in prompts:
        server.flush()
        wanted.append(server.generate(ids, custom=custom)["output_ids"])
    server.flush()
    streams = [Stream(server, ids, custom, 8) for number, (ids, custom) in enumerate(prompts)]
    for stream in streams:
        stream.join()
    assert [stream.last["output_ids"] for stream in streams] == wanted
