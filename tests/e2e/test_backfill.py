"""Dropped tokens are prefilled when there is time: the same tokens as a Hugging Face reference that switches to all of them."""

import itertools
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.support import reference
from tests.support.faults import serve_with_faults
from tests.support.server import host_cache_options, sparse_options
from tests.support.streams import Stream, until
from tests.support.tiny_models import EOS, prompt_ids

NEW = 30
KEEP = 0.1
PIECE = 256
CUSTOM = {"spec_prefill_keep_ratio": KEEP, "spec_prefill_return_positions": True}
ANSWER = {**CUSTOM, "spec_prefill_backfill": "answer"}
TURN = {**CUSTOM, "spec_prefill_backfill": "turn"}
LATER = {"spec_prefill_keep_ratio": KEEP, "spec_prefill_min_tokens": 200}  # a turn that adds less is dense after a whole prefix
SERVERS = {
    "overlap": ("llama", []),
    "qwen3, no overlap": ("qwen3", ["--disable-overlap-schedule"]),
    "two ranks": ("llama", ["--tp", "2"]),
    "mixed chunks, pages": ("llama", ["--enable-mixed-chunk", "--page-size", "16"]),
    "retracted, preempted": ("llama", ["--enable-priority-scheduling", "--max-running-requests", "3"]),
    "host cache": ("llama", ["--max-total-tokens", "6000", *host_cache_options("files")]),
    "crowded": ("llama", ["--max-running-requests", "3", "--max-total-tokens", "6000"]),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in SERVERS if name != "overlap"]


@pytest.fixture(scope="module", params=["overlap", *SLOW])
def case(request, pair_of, hugging_face, tmp_path_factory):
    """A server, its faults, its models as Hugging Face has them."""
    family, options = SERVERS[request.param]
    target, draft = pair_of(family)
    folder, retracting = tmp_path_factory.mktemp("backfill"), "retracted" in request.param
    flags = [*sparse_options(draft, backfill_tokens=PIECE), "--enable-metrics", *options]
    with serve_with_faults(folder, target, *flags, retracting=retracting) as (server, faults):
        yield server, faults, hugging_face(target), hugging_face(draft)


@pytest.fixture
def server(case):
    case[0].flush()
    return case[0]


def _wanted(case, ids, reply, new=NEW, adjust=None):
    """The tokens a reply must have that was answered on all tokens from where it says."""
    _, _, target, draft = case
    kept = reference.select_chunks(reference.draft_importance(draft, ids, eos_ids=(EOS,)), keep_ratio=KEEP)
    info = reply["meta_info"]["spec_prefill"]
    assert info["positions"] == kept
    switch = [] if info["backfilled"] is None else [(info["backfilled"], list(range(len(ids))))]
    return reference.greedy_revived(target, ids, [(0, kept), *switch], len(ids), new, adjust=adjust)


def _dense(case, ids, new=8):
    return reference.greedy(case[2], ids, list(range(len(ids))), len(ids), new)[0]


def _counters(server):
    return server.state()["spec_prefill"]["counters"]


def _done(server, since, outcome="complete", count=1):
    """Wait until so many prompts more have come to this end."""
    until(lambda: _counters(server)["backfills"].get(outcome, 0) >= since.get(outcome, 0) + count)


def test_an_answer_goes_on_with_all_tokens(case, server):
    for seed, length in enumerate((333, 700, 1023, 1200)):
        server.flush()
        before, ids = _counters(server)["prompt_tokens"].get("backfilled", 0), prompt_ids(length, seed=seed)
        reply = server.generate(ids, custom=ANSWER, params={"max_new_tokens": NEW})
        info = reply["meta_info"]["spec_prefill"]
        assert 0 < info["backfilled"] <= 2 + 2 * -(-length // PIECE)  # a piece, a token
        assert reply["output_ids"] == _wanted(case, ids, reply)
        assert reply["meta_info"]["prompt_tokens"] == length
        assert info["kept_tokens"] == len(info["positions"])  # what the first token waited for
        computed = _counters(server)["prompt_tokens"]["backfilled"] - before
        assert length - info["kept_tokens"] <= computed <= length


def test_neighbours_do_not_matter(case, server):
    """Eight at once, of every kind: each is what it would be alone."""
    prompts = [prompt_ids(300 + 40 * seed, seed=seed) for seed in range(8)]
    kinds = [
        ANSWER,
        TURN,
        {"spec_prefill": False},
        {**ANSWER, "spec_prefill_revive_every": 2, "spec_prefill_selection": "paper"},
    ] * 2
    fields = [{"priority": 20 * (at % 3)} if server.state()["enable_priority_scheduling"] else {} for at in range(8)]

    def ask(at):
        return server.generate(prompts[at], custom=kinds[at], params={"max_new_tokens": 60}, **fields[at])

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(ask, range(8)))
    for ids, kind, reply in zip(prompts, kinds, replies, strict=True):
        wanted = _dense(case, ids, 60) if "spec_prefill" in kind else _wanted(case, ids, reply, 60)
        assert reply["output_ids"] == wanted


def test_a_token_in_flight_is_appended_without_the_pause(case, server):
    """What the rule of one iteration is for (`hooks.readmission`): admitted at once, an answer is wrong."""
    if server.state()["disable_overlap_schedule"]:
        pytest.skip("nothing is in flight without overlap")
    faults, wrong = case[1], 0
    faults.switch("exact_at_once")
    try:
        for seed in range(3):
            ids = prompt_ids(1023, seed=seed)
            reply = server.generate(ids, custom=ANSWER, params={"max_new_tokens": NEW})
            wrong += reply["output_ids"] != _wanted(case, ids, reply)
    finally:
        faults.switch("exact_at_once", on=False)
    assert wrong


def test_the_next_turn_is_dense(case, server):
    """Token by token, after an answer whose prompt was sparse; its prefix is cached as a dense one's would be."""
    ids, since = prompt_ids(700, seed=1), _counters(server)["backfills"]
    first = server.generate(ids, custom=TURN, params={"max_new_tokens": NEW})
    assert first["output_ids"] == _wanted(case, ids, first)
    assert first["meta_info"]["spec_prefill"]["backfilled"] is None
    _done(server, since)
    more = [*ids, *first["output_ids"], *prompt_ids(80, seed=99)]
    second = server.generate(more, custom=LATER)
    info = second["meta_info"]["spec_prefill"]
    assert (info["applied"], info["reason"]) == (False, "prefix_cached")
    page = server.state()["page_size"]
    assert second["meta_info"]["cached_tokens"] >= len(ids) + NEW - 1 - page
    assert second["output_ids"] == _dense(case, more)


def test_prompts_too_short_to_be_remembered_are_backfilled_too(case, server):
    ids, since = prompt_ids(50, seed=3), _counters(server)["backfills"]
    custom = {**TURN, "spec_prefill_selection": "best", "spec_prefill_chunk_size": 4}
    assert server.generate(ids, custom=custom)["meta_info"]["spec_prefill"]["kept_tokens"] < 50
    _done(server, since)
    assert server.generate(ids, custom=LATER)["output_ids"] == _dense(case, ids)


def test_another_question_on_the_document_and_the_same_again_are_dense(case, server):
    document, since = prompt_ids(900, seed=5), _counters(server)["backfills"]
    first = [*document, *prompt_ids(40, seed=6)]
    assert server.generate(first, custom=TURN)["meta_info"]["spec_prefill"]["applied"]
    _done(server, since)
    for ids in ([*document, *prompt_ids(40, seed=7)], first):
        reply = server.generate(ids, custom=LATER)
        assert reply["meta_info"]["spec_prefill"]["reason"] == "prefix_cached"
        assert reply["output_ids"] == _dense(case, ids)


def test_a_turn_after_an_answer_that_became_dense(case, server):
    ids = prompt_ids(700, seed=2)
    first = server.generate(ids, custom=ANSWER, params={"max_new_tokens": NEW})
    assert first["meta_info"]["spec_prefill"]["backfilled"]
    more = [*ids, *first["output_ids"], *prompt_ids(60, seed=98)]
    second = server.generate(more, custom=LATER)
    assert second["meta_info"]["cached_tokens"] >= len(ids) + NEW - 1 - server.state()["page_size"]
    assert second["output_ids"] == _dense(case, more)


def test_revived_and_exact(case, server):
    """Both at once: some tokens return while the rest is computed."""
    custom = {**ANSWER, "spec_prefill_revive_every": 1, "spec_prefill_chunk_size": 4, "spec_prefill_selection": "best"}
    both = 0
    for seed in range(4):
        server.flush()
        ids = prompt_ids(1200, seed=seed)
        reply = server.generate(ids, custom=custom, params={"max_new_tokens": NEW})
        info = reply["meta_info"]["spec_prefill"]
        assert info["backfilled"]
        assert all(said <= info["backfilled"] for said in info["asked_after"])
        whole, said = [(info["backfilled"], list(range(len(ids))))], reply["output_ids"][: info["backfilled"]]
        assert reply["output_ids"] == reference.greedy_revived(case[2], ids, whole, len(ids), NEW, said=said)
        both += bool(info["revived_after"])
    assert both


def test_streams_logprobs_and_samples_go_on(case, server):
    ids = prompt_ids(1023, seed=2)
    reply = server.generate(ids, custom=ANSWER, params={"max_new_tokens": NEW}, return_logprob=True)
    assert [one[1] for one in reply["meta_info"]["output_token_logprobs"]] == reply["output_ids"] == _wanted(case, ids, reply)
    server.flush()
    stream = Stream(server, ids, ANSWER, NEW)
    stream.join()
    assert stream.last["output_ids"] == _wanted(case, ids, stream.last)
    assert all(said == stream.last["output_ids"][: len(said)] for said in stream.said)
    lengths = [len(said) for said in stream.said]
    assert lengths == sorted(lengths)
    server.flush()
    for one in server.generate(ids, custom=ANSWER, params={"max_new_tokens": NEW, "n": 2}):
        assert one["output_ids"] == _wanted(case, ids, one)


def test_patterns_schemas_and_stops_hold(case, server):
    ids = prompt_ids(1023, seed=2)
    reply = server.generate(ids, custom=ANSWER, params={"max_new_tokens": NEW, "regex": "(ab|cd){20}"})
    assert reply["meta_info"]["spec_prefill"]["backfilled"]
    assert re.fullmatch("(ab|cd)+[ac]?", reply["text"])
    server.flush()
    schema = {"type": "array", "items": {"type": "integer", "minimum": 10000, "maximum": 99999}, "minItems": 9}
    reply = server.generate(ids, custom=ANSWER, params={"max_new_tokens": NEW, "json_schema": json.dumps(schema)})
    assert reply["meta_info"]["spec_prefill"]["backfilled"]
    assert re.fullmatch(r"\[(\s*\d{5}\s*,)*\s*\d{0,5}\s*", reply["text"])
    server.flush()
    whole = server.generate(ids, custom=ANSWER, params={"max_new_tokens": NEW})
    server.flush()
    stop = whole["output_ids"][NEW - 5]
    reply = server.generate(ids, custom=ANSWER, params={"max_new_tokens": NEW, "ignore_eos": False, "stop_token_ids": [stop]})
    said = reply["output_ids"]
    assert said == whole["output_ids"][: len(said)]
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}


def test_nothing_is_computed_for_later_while_something_waits(case, server):
    """Here a prompt that a slow draft reads."""

    def computed():
        assert server.load()["num_waiting_reqs"] > 0
        return _counters(server)["prompt_tokens"]["backfilled"]

    since, faults = _counters(server), case[1]
    server.generate(prompt_ids(4000, seed=1), custom=TURN, params={"max_new_tokens": 1})
    faults.switch("slow_step")
    try:
        waiting = Stream(server, prompt_ids(2000, seed=2), CUSTOM, 1)
        until(lambda: server.load()["num_waiting_reqs"])
        first = computed()
        time.sleep(0.3)
        assert computed() == first < since["prompt_tokens"].get("backfilled", 0) + 4000
    finally:
        faults.switch("slow_step", on=False)
    waiting.join()
    _done(server, since["backfills"])


def test_it_ends_with_its_request(case, server):
    """An aborted request's, and for an answer a finished one's; nothing is held."""
    start, since = server.free(), _counters(server)["backfills"]
    for custom in (ANSWER, TURN):
        stream = Stream(server, prompt_ids(3000, seed=3), custom, 500)
        until(lambda one=stream: one.times)
        server.post("/abort_request", {"rid": stream.rid})
        stream.join()
    server.generate(prompt_ids(3000, seed=4), custom=ANSWER, params={"max_new_tokens": 2})
    _done(server, since, "cancelled", 3)
    until(lambda: server.free() == start)


def test_flushing_and_new_weights_do_not_wait_for_it(case, server):
    if server.state()["enable_hierarchical_cache"]:
        pytest.skip("SGLang itself flushes nothing while KV is on its way to the host")
    since, asked = _counters(server)["backfills"].get("cancelled", 0), 0
    while _counters(server)["backfills"].get("cancelled", 0) < since + 3:  # a slow client comes when it is complete
        server.generate(prompt_ids(4000, seed=8), custom=TURN, params={"max_new_tokens": 1})
        assert server.post("/flush_cache", {}).status_code == 200
        asked += 1
        assert asked < 30
    server.generate(prompt_ids(4000, seed=8), custom=TURN, params={"max_new_tokens": 1})
    path = server.state()["model_path"]
    reply = server.post("/update_weights_from_disk", {"model_path": path})
    assert reply.status_code == 200, reply.text


def test_it_is_off_by_default_and_counts_in_no_usage(case, server):
    ids, since = prompt_ids(600, seed=5), _counters(server)
    text = _metrics(server)
    info = server.generate(ids, custom=CUSTOM, params={"max_new_tokens": NEW})["meta_info"]["spec_prefill"]
    assert info["backfilled"] is None
    assert _counters(server)["backfills"] == since["backfills"]
    reply = server.generate(prompt_ids(600, seed=6), custom=ANSWER, params={"max_new_tokens": NEW})
    assert reply["meta_info"]["completion_tokens"] == NEW
    later = _metrics(server)
    for name, added in (("sglang:prompt_tokens_total", 1200), ("sglang:generation_tokens_total", 2 * NEW)):
        assert _value(later, name) - _value(text, name) == added
    name = "sglang:spec_prefill_backfill_tokens_total"
    assert _value(later, name) > _value(text, name)


def _metrics(server):
    """Once they stand still: SGLang counts a request after it has answered it."""
    read = [requests.get(server.url + "/metrics", timeout=60).text]
    names = ("sglang:prompt_tokens_total", "sglang:generation_tokens_total", "sglang:spec_prefill_backfill_tokens_total")

    def stand_still():
        time.sleep(0.5)
        read.append(requests.get(server.url + "/metrics", timeout=60).text)
        return all(_value(read[-1], name) == _value(read[-2], name) for name in names)

    until(stand_still)
    return read[-1]


def _value(text, name):
    """The sum of a counter over its labels."""
    return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{re.escape(name)}[{{ ]", line))


@pytest.mark.parametrize("penalty", [{"frequency_penalty": 1.5}, {"repetition_penalty": 1.8}], ids=lambda one: next(iter(one)))
def test_penalties_count_on(case, server, penalty):
    """A retraction alone would make SGLang forget what it has counted."""
    ids, lags = prompt_ids(1023, seed=2), not server.state()["disable_overlap_schedule"]
    plain = server.generate(ids, custom=ANSWER, params={"max_new_tokens": NEW})
    server.flush()
    reply = server.generate(ids, custom=ANSWER, params={"max_new_tokens": NEW, **penalty})
    assert reply["meta_info"]["spec_prefill"]["backfilled"]
    assert reply["output_ids"] != plain["output_ids"]
    assert reply["output_ids"] == _wanted(case, ids, reply, adjust=reference.penalties(ids, **penalty, lags=lags))


def test_tokens_before_an_end_count_on(case, server):
    ids = prompt_ids(1023, seed=2)
    plain = server.generate(ids, custom=ANSWER, params={"max_new_tokens": NEW})["output_ids"]
    early, least = plain[2], 20
    server.flush()
    params = {"max_new_tokens": NEW, "ignore_eos": False, "stop_token_ids": [early], "min_new_tokens": least}
    reply = server.generate(ids, custom=ANSWER, params=params)
    assert 0 < reply["meta_info"]["spec_prefill"]["backfilled"] < least
    assert early not in reply["output_ids"][:least]


def test_a_wrong_field_is_named(case, server):
    for value in ("yes", 1, None):
        params = {"custom_params": {"spec_prefill_backfill": value}}
        reply = server.post("/generate", {"input_ids": [5] * 9, "sampling_params": params})
        assert reply.status_code == 400
        assert "spec_prefill_backfill" in reply.text


def test_everything_is_given_back(case, server):
    start = server.free()
    since = _counters(server)["backfills"]
    for seed, custom in itertools.product(range(3), (TURN, ANSWER)):
        server.generate(prompt_ids(600, seed=seed), custom=custom, params={"max_new_tokens": NEW})
    _done(server, since, count=3)
    until(lambda: server.free() == start)
