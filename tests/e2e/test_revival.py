"""Dropped tokens that the answer asks for return: the same tokens as a Hugging Face reference that prefills them then."""

import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import best_reference, reference, revival_reference
from tests.support.families import FAMILIES
from tests.support.faults import serve_with_faults
from tests.support.server import host_cache_options, serve, sparse_options
from tests.support.streams import Stream, until
from tests.support.tiny_models import EOS, prompt_ids

NEW = 30
KEEP = 0.1
SHARP = {"selection": "best", "chunk_size": 4, "pool_kernel": 5}  # else few chunks of a tiny random draft stand out
CUSTOM = {
    "spec_prefill_keep_ratio": KEEP,
    "spec_prefill_revive_every": 3,
    "spec_prefill_revive_chunks": 2,
    "spec_prefill_return_positions": True,
    **{f"spec_prefill_{name}": value for name, value in SHARP.items()},
}
PAPER = {name: CUSTOM[name] for name in list(CUSTOM)[:4]} | {"spec_prefill_selection": "paper"}
BEST = {**revival_reference.BEST, **SHARP}
SERVERS = {
    "overlap": ("llama", []),
    # and a queue that takes no whole group, with eight that are sent at once
    "qwen3, no overlap": ("qwen3", ["--disable-overlap-schedule", "--max-queued-requests", "9"]),
    "two ranks": ("llama", ["--tp", "2"]),
    "retracted, preempted": ("llama", ["--enable-priority-scheduling", "--max-running-requests", "3"]),
    # the reader forgets prompts while they are answered, and a returning request finds others waiting
    "crowded": ("llama", ["--max-running-requests", "3", *sparse_options(None, draft_max_tokens=1400)[1:]]),
    # the device loses what the host keeps, and what is to be prefilled again is looked for in files
    "host cache": ("llama", ["--max-total-tokens", "3000", *host_cache_options("files")]),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in SERVERS if name != "overlap"]


@pytest.fixture(scope="module", params=["overlap", *SLOW])
def case(request, pair_of, hugging_face, tmp_path_factory):
    """A server, its faults, its models as Hugging Face has them."""
    family, options = SERVERS[request.param]
    target, draft = pair_of(family)
    folder, retracting = tmp_path_factory.mktemp("revival"), "retracted" in request.param
    flags = [*sparse_options(draft), *options]
    with serve_with_faults(folder, target, *flags, retracting=retracting) as (server, faults):
        yield server, faults, hugging_face(target), hugging_face(draft)


def _wanted(case, ids, reply, *, rule=BEST, new=NEW, adjust=None):
    """The tokens and last positions that a reply must have, whose answer was asked when it says."""
    _, _, target, draft = case
    info = reply["meta_info"]["spec_prefill"]
    if rule is revival_reference.PAPER:
        kept = reference.select_chunks(reference.draft_importance(draft, ids, eos_ids=(EOS,)), keep_ratio=KEEP)
    else:
        kept = best_reference.kept(
            lambda _n, **how: reference.draft_votes(draft, ids, eos_ids=(EOS,), **how),
            best_reference.RULE,
            SHARP,
            len(ids),
            KEEP,
        )
    prefills = revival_reference.prefills(
        *(draft, ids, reply["output_ids"], kept, rule, info["asked_after"]), keep_ratio=KEEP, most=2
    )
    assert info["revived_after"] == [said for said, _ in prefills[1:]]
    assert info["revived_tokens"] == len(prefills[-1][1]) - len(kept)
    return reference.greedy_revived(target, ids, prefills, len(ids), new, adjust=adjust), prefills[-1][1]


@pytest.mark.parametrize("rule", [revival_reference.PAPER, BEST], ids=["paper", "best"])
def test_same_positions_and_tokens(case, rule):
    """Of several prompts, to some of which something returns."""
    revived = []
    for seed, length in enumerate((333, 700, 1023, 1200)):
        case[0].flush()
        ids = prompt_ids(length, seed=seed)
        reply = case[0].generate(ids, custom=CUSTOM if rule is BEST else PAPER, params={"max_new_tokens": NEW})
        info = reply["meta_info"]["spec_prefill"]
        tokens, positions = _wanted(case, ids, reply, rule=rule)
        assert info["positions"] == positions
        assert reply["output_ids"] == tokens
        assert info["asked_after"][0] == 3
        pauses = [after - before for before, after in itertools.pairwise(info["asked_after"])]
        expected = [3 if said in info["revived_after"] else None for said in info["asked_after"][:-1]]
        assert all(pause == wanted or (wanted is None and pause >= 6) for pause, wanted in zip(pauses, expected, strict=True))
        revived += info["revived_after"]
    assert revived or rule is revival_reference.PAPER  # the tiny drafts' chunks of 32 never stand out


def test_neighbours_do_not_matter(case):
    """Eight at once, dense ones among them: each is what it would be alone."""
    server = case[0]
    server.flush()
    prompts = [prompt_ids(300 + 40 * seed, seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(
            pool.map(
                lambda at: server.generate(
                    prompts[at], custom={"spec_prefill": False} if at % 4 == 3 else CUSTOM, params={"max_new_tokens": NEW}
                ),
                range(8),
            )
        )
    revived = 0
    for at, (ids, reply) in enumerate(zip(prompts, replies, strict=True)):
        if at % 4 == 3:
            wanted = reference.greedy(case[2], ids, list(range(len(ids))), len(ids), NEW)[0]
        else:
            wanted, _ = _wanted(case, ids, reply)
            revived += len(reply["meta_info"]["spec_prefill"]["revived_after"])
        assert reply["output_ids"] == wanted
    assert revived > 0


def test_a_token_in_flight_is_appended_without_the_pause(case):
    """What the rule of one iteration is for (`hooks.revival`): admitted at once, an answer is wrong."""
    server, faults, *_ = case
    if server.state()["disable_overlap_schedule"]:
        pytest.skip("nothing is in flight without overlap")
    server.flush()
    ids = prompt_ids(1023, seed=1023)
    faults.switch("revive_at_once")
    try:
        reply = server.generate(ids, custom=CUSTOM, params={"max_new_tokens": NEW})
    finally:
        faults.switch("revive_at_once", on=False)
    try:
        wanted, _ = _wanted(case, ids, reply)
    except AssertionError:
        return
    assert reply["output_ids"] != wanted


def test_nothing_is_held_afterwards(case):
    server = case[0]
    server.flush()
    start = server.free()
    for seed in range(3):
        server.generate(prompt_ids(600, seed=seed), custom=CUSTOM, params={"max_new_tokens": NEW})
    until(lambda: server.free() == start)


def test_it_is_off_by_default(case):
    server = case[0]
    custom = {"spec_prefill_keep_ratio": KEEP}
    info = server.generate(prompt_ids(600, seed=5), custom=custom, params={"max_new_tokens": NEW})["meta_info"]["spec_prefill"]
    assert (info["asked_after"], info["revived_after"], info["revived_tokens"]) == ([], [], 0)


def test_streams_logprobs_and_grammars_go_on(case):
    """Over a retraction: no token twice, a logprob for each, a pattern kept."""
    server = case[0]
    ids = prompt_ids(1023, seed=2)
    server.flush()
    reply = server.generate(ids, custom=CUSTOM, params={"max_new_tokens": NEW}, return_logprob=True)
    wanted, _ = _wanted(case, ids, reply)
    assert [one[1] for one in reply["meta_info"]["output_token_logprobs"]] == reply["output_ids"] == wanted
    server.flush()
    stream = Stream(server, ids, CUSTOM, NEW)
    stream.join()
    assert stream.last["output_ids"] == wanted
    assert all(said == wanted[: len(said)] for said in stream.said)
    lengths = [len(said) for said in stream.said]  # a chunk without new tokens tells of a retraction, as SGLang has it
    assert lengths == sorted(lengths)
    params = {"max_new_tokens": NEW, "regex": "(ab|cd)*"}
    reply = server.generate(ids, custom=CUSTOM, params=params)
    assert reply["meta_info"]["spec_prefill"]["revived_after"]
    assert re.fullmatch("((ab|cd)*)[abcd]?", reply["text"])


def test_two_answers_to_one_prompt_are_asked_apart(case):
    server = case[0]
    server.flush()
    ids = prompt_ids(700, seed=1)
    replies = server.generate(ids, custom=CUSTOM, params={"max_new_tokens": NEW, "n": 2})
    for reply in replies:
        assert reply["output_ids"] == _wanted(case, ids, reply)[0]


def test_each_of_several_answers_has_its_own_next_turn(case):
    """Though other tokens returned for one than for another."""
    server = case[0]
    server.flush()
    ids = prompt_ids(700, seed=1)
    replies = server.generate(ids, custom=CUSTOM, params={"max_new_tokens": NEW, "n": 3, "temperature": 1})
    kept = [reply["meta_info"]["spec_prefill"]["positions"] for reply in replies]
    assert len(set(map(tuple, kept))) > 1
    for reply, positions in zip(replies, kept, strict=True):
        more = [*ids, *reply["output_ids"], *prompt_ids(80, seed=99)]
        info = server.generate(more, custom={**CUSTOM, "spec_prefill_revive_every": 0})["meta_info"]["spec_prefill"]
        assert info["positions"][: len(positions) + NEW - 1] == [*positions, *range(700, 700 + NEW - 1)]


def test_the_next_turn_begins_with_what_returned(case):
    server = case[0]
    server.flush()
    ids = prompt_ids(700, seed=1)
    first = server.generate(ids, custom=CUSTOM, params={"max_new_tokens": NEW})
    again = server.generate(ids, custom=CUSTOM, params={"max_new_tokens": NEW})
    assert first["meta_info"]["spec_prefill"]["revived_after"]
    assert again["output_ids"] == first["output_ids"]  # the same prompt begins as it did
    more = [*ids, *first["output_ids"], *prompt_ids(80, seed=99)]
    info = server.generate(more, custom={**CUSTOM, "spec_prefill_revive_every": 0})["meta_info"]["spec_prefill"]
    kept = first["meta_info"]["spec_prefill"]["positions"]
    said = list(range(700, 700 + NEW))
    assert info["positions"][: len(kept) + NEW - 1] == [*kept, *said[:-1]]


def test_a_cancelled_stream_between_retraction_and_return_leaves_nothing(case):
    server = case[0]
    server.flush()
    start = server.free()
    for seed in range(6):
        ids, custom = prompt_ids(1000, seed=seed), {**CUSTOM, "spec_prefill_revive_every": 1}
        stream = Stream(server, ids, custom, 500)
        until(lambda one=stream: one.times)
        server.post("/abort_request", {"rid": stream.rid})
        stream.join()
    until(lambda: server.free() == start)


@pytest.mark.parametrize("penalty", [{"frequency_penalty": 1.5}, {"repetition_penalty": 1.8}], ids=lambda one: next(iter(one)))
def test_penalties_count_on(case, penalty):
    """A retraction alone would make SGLang forget what it has counted."""
    server, lags = case[0], not case[0].state()["disable_overlap_schedule"]
    returned = 0
    for seed in range(3):
        server.flush()
        ids = prompt_ids(1023, seed=seed)
        reply = server.generate(ids, custom=CUSTOM, params={"max_new_tokens": NEW, **penalty})
        assert reply["output_ids"] == _wanted(case, ids, reply, adjust=reference.penalties(ids, **penalty, lags=lags))[0]
        returned += bool(reply["meta_info"]["spec_prefill"]["revived_after"])
    assert returned


@pytest.mark.slow
def test_half_of_a_targets_window_stays_with_the_prompts_end(pair_of, model_of, tmp_path):
    """Its layers look back on 63 kept tokens, and what returns lies between the prompt's end and the answer."""
    custom, params = {**CUSTOM, "spec_prefill_revive_every": 1}, {"max_new_tokens": NEW}
    options = [*sparse_options(pair_of("llama")[1]), *FAMILIES["mellum"].options]
    with serve(tmp_path, model_of("mellum"), *options) as server:
        replies = [server.generate(prompt_ids(1000, seed=seed), custom=custom, params=params) for seed in range(4)]
    returned = [reply["meta_info"]["spec_prefill"]["revived_tokens"] for reply in replies]
    assert 63 // 2 - 2 * SHARP["chunk_size"] < max(returned) <= 63 // 2
