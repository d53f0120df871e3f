"""Streaming sessions are served dense beside sparse requests; subscribers to KV events hear of what plain prompts can share."""

import itertools
import json
import threading
import time

import msgspec
import pytest
import zmq
from sglang.srt.disaggregation.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch

from benchmarks.launch import free_port
from specprefill_sgl.request.skipcode import TOKEN_MASK
from tests.support.faults import serve_with_faults
from tests.support.mixture import assert_same_mixture
from tests.support.server import sparse_options
from tests.support.streams import Stream, until
from tests.support.tiny_models import prompt_ids

pytestmark = pytest.mark.slow
POOL = 14000  # device slots: two long prompts push out everything else
SPARSE = {"spec_prefill_keep_ratio": 0.3, "spec_prefill_keep_last": 0, "spec_prefill_return_positions": True}
DENSE = {"spec_prefill": False}
_seeds = itertools.count(8000)


class Subscriber(threading.Thread):
    """A subscriber to a server's KV events, as a router is: what it has heard, in order."""

    def __init__(self, port: int):
        super().__init__(daemon=True)
        self.heard: list = []
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.connect(f"tcp://127.0.0.1:{port}")
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self.start()

    def run(self):
        decoder = msgspec.msgpack.Decoder(KVEventBatch)
        while True:
            *_, payload = self._socket.recv_multipart()
            self.heard += decoder.decode(payload).events

    def after_a_flush(self, server) -> int:
        """Where what it hears of an empty cache begins."""
        start = len(self.heard)
        server.flush()
        until(lambda: any(isinstance(one, AllBlocksCleared) for one in self.heard[start:]))
        return len(self.heard)


@pytest.fixture(scope="module")
def case(pair_of, tmp_path_factory):
    """A server, a subscriber to its events, and its faults."""
    target, draft = pair_of("llama")
    port = free_port()
    events = json.dumps({"publisher": "zmq", "endpoint": f"tcp://*:{port}"})
    options = ["--kv-events-config", events, "--enable-streaming-session", "--max-total-tokens", str(POOL)]
    with serve_with_faults(tmp_path_factory.mktemp("events"), target, *sparse_options(draft), *options, retracting=False) as (
        server,
        faults,
    ):
        subscriber = Subscriber(port)
        until(lambda: server.generate([5] * 4) and subscriber.heard)  # a subscription takes a while
        yield server, subscriber, faults


def _stored(events):
    """Tokens and blocks that were announced, in order."""
    stored = [one for one in events if isinstance(one, BlockStored)]
    return [token for one in stored for token in one.token_ids], [block for one in stored for block in one.block_hashes]


def _heard_of(case, ids, custom, wanted):
    """The tokens a subscriber hears of when a prompt is answered; it must be `wanted`, and then nothing more comes."""
    server, subscriber, _ = case
    start = subscriber.after_a_flush(server)
    reply = server.generate(ids, custom=custom)
    tokens = wanted(reply)
    until(lambda: len(_stored(subscriber.heard[start:])[0]) >= len(tokens))
    time.sleep(0.5)
    assert _stored(subscriber.heard[start:])[0] == tokens
    return reply


def test_the_same_answers_as_without(case, mixture_of):
    assert_same_mixture(case[0], mixture_of("llama"))


def test_blocks_of_dense_prompts_are_announced(case):
    ids = prompt_ids(500, seed=1)
    _heard_of(case, ids, DENSE, lambda reply: [*ids, *reply["output_ids"][:-1]])


def test_of_a_sparse_prompt_its_undropped_beginning_is_announced(case):
    ids = prompt_ids(500, seed=2)
    custom = {**SPARSE, "spec_prefill_protect": [0, 100]}

    def beginning(reply):
        kept = reply["meta_info"]["spec_prefill"]["positions"]
        return ids[: next(at for at, position in enumerate(kept) if at != position)]

    reply = _heard_of(case, ids, custom, beginning)
    assert len(reply["meta_info"]["spec_prefill"]["positions"]) > len(beginning(reply)) >= 100


def _removed_blocks(case):
    """What is announced, and what is removed, while others push sparse and dense prompts out."""
    server, subscriber, _ = case
    start = subscriber.after_a_flush(server)
    for seed in range(6):
        server.generate(prompt_ids(600, seed=seed), custom=SPARSE if seed % 2 else DENSE)
    for _ in range(2):
        server.generate(prompt_ids(POOL // 2, seed=next(_seeds)), custom=DENSE, params={"max_new_tokens": 1})
    time.sleep(0.5)
    events = subscriber.heard[start:]
    removed = [block for one in events if isinstance(one, BlockRemoved) for block in one.block_hashes]
    return *_stored(events), removed


def test_only_announced_blocks_are_removed(case):
    tokens, blocks, removed = _removed_blocks(case)
    assert max(tokens) <= TOKEN_MASK
    assert len(removed) >= 3 * 600
    assert set(removed) <= set(blocks)


def test_without_the_filter_coded_ids_are_announced(case):
    _, _, faults = case
    faults.switch("announce_all")
    try:
        tokens, _, _ = _removed_blocks(case)
    finally:
        faults.switch("announce_all", on=False)
    assert max(tokens) > TOKEN_MASK


def test_a_streaming_session_is_dense_and_says_so(case):
    """Beside sparse requests; each of its turns is answered like the whole conversation without a session."""
    server = case[0]
    server.flush()
    opened = server.post("/open_session", {"capacity_of_str_len": 100000, "session_id": "turns", "streaming": True})
    assert opened.status_code == 200, opened.text
    neighbours = [Stream(server, prompt_ids(700, seed=40 + at), SPARSE, 200) for at in range(3)]
    until(lambda: all(one.times for one in neighbours))
    whole: list[int] = []
    for number in range(3):
        new = prompt_ids(300, seed=30 + number)
        reply = server.generate(new, custom=SPARSE, session_params={"id": "turns"})
        info, whole = reply["meta_info"]["spec_prefill"], [*whole, *new]
        assert (info["applied"], info["reason"]) == (False, "session")
        assert info["kept_tokens"] == reply["meta_info"]["prompt_tokens"] == len(whole)
        alone = server.generate(whole, custom=DENSE)
        assert reply["output_ids"] == alone["output_ids"]
        whole += reply["output_ids"]
    for one in neighbours:
        one.join()
        assert one.last["meta_info"]["spec_prefill"]["applied"]
    assert server.post("/close_session", {"session_id": "turns"}).status_code == 200
    again = [server.generate(prompt_ids(700, seed=40 + at), custom=SPARSE, params={"max_new_tokens": 200}) for at in range(3)]
    assert [one["output_ids"] for one in again] == [one.last["output_ids"] for one in neighbours]
    server.flush()
    assert server.load()["num_used_tokens"] == 0
