"""The target's first layers choose what an independent Hugging Face reference of them chooses; the target is unharmed."""

import functools
import itertools
import time

import pytest

from specprefill_sgl.calibration import heads_file
from tests.support import best_reference, reference
from tests.support.answers import Judge, all_at_once, assert_answer, mixed_requests
from tests.support.faults import Faults
from tests.support.server import body_of, serve, sparse_options
from tests.support.streams import Stream, until
from tests.support.tiny_models import prompt_ids

LAYERS = 2  # of three
HEADS = ((0, 1), (1, 3))  # one on each of two ranks
RULE = {**best_reference.RULE, "lookahead": 1, "window": 48}
CUSTOM = {"spec_prefill_keep_ratio": 0.2, "spec_prefill_return_positions": True}
TOLERANCE = 1e-4  # of a logprob
TWO_RANKS = ("--tp", "2")
CASES = [
    pytest.param((None, ()), id="all heads"),
    pytest.param((HEADS, TWO_RANKS), id="chosen heads, two ranks"),
    pytest.param((HEADS, ()), id="chosen heads", marks=pytest.mark.slow),
    pytest.param((None, TWO_RANKS), id="all heads, two ranks", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module", params=CASES)
def case(request, pair_of, faults, tmp_path_factory):
    """A server with two methods, and the heads that vote; None: all of the last layer that reads."""
    target, draft = pair_of("llama")
    heads, flags = request.param
    folder = tmp_path_factory.mktemp("early")
    options: dict = {"selection": "best", "method": "early-layers,draft", "layers": LAYERS}
    if heads is not None:
        options["heads"] = folder / "heads.json"
        heads_file.save(options["heads"], target, heads, {})
    with serve(folder, target, *sparse_options(draft, **options), *flags, env=faults.env) as server:
        yield server, heads


@pytest.fixture
def server(case):
    """With nothing cached."""
    case[0].flush()
    return case[0]


@pytest.fixture(scope="module")
def target(pair_of, hugging_face):
    return hugging_face(pair_of("llama")[0])


@pytest.fixture(scope="module")
def kept(case, target):
    """What the first layers keep of a prompt: (ids, keep ratio, changed settings) -> positions."""
    votes = functools.cache(lambda ids, **how: reference.draft_votes(target, ids, heads=case[1], first=LAYERS, **how))

    def positions(ids, keep_ratio, changed=()):
        return best_reference.kept(lambda _, **how: votes(tuple(ids), **how), RULE, dict(changed), len(ids), keep_ratio)

    return positions


@pytest.fixture
def right(kept, target):
    """Asserts that a reply keeps what the first layers choose, and answers as the target does to that."""

    def check(reply, ids, keep_ratio, changed=()):
        info = reply["meta_info"]["spec_prefill"]
        assert (info["method"], info["positions"]) == ("early-layers", kept(ids, keep_ratio, changed))
        tokens, logprobs = reference.greedy(target, ids, info["positions"], len(ids), len(reply["output_ids"]))
        if "output_token_logprobs" in reply["meta_info"]:
            assert_answer(reply, tokens, logprobs, TOLERANCE)
        assert reply["output_ids"] == tokens

    return check


# a server reads in chunks of 512 tokens
@pytest.mark.parametrize(
    ("length", "keep_ratio"),
    [(31, 0.3), (33, 0.05), (33, 0.3), (1023, 0.05), (1023, 0.3), (1023, 0.5), (1040, 0.05), (1040, 0.3), (2100, 0.1)],
)
@pytest.mark.parametrize("changed", [{}, {"window": 17, "chunk_size": 32, "over_votes": "mean"}], ids=str)
def test_same_positions_and_tokens(server, right, length, changed, keep_ratio):
    fields = {f"spec_prefill_{name}": value for name, value in changed.items()}
    ids = prompt_ids(length, seed=length)
    reply = server.generate(ids, custom={**CUSTOM, **fields, "spec_prefill_keep_ratio": keep_ratio}, return_logprob=True)
    right(reply, ids, keep_ratio, changed)


@pytest.mark.parametrize("length", [33, 1023])
def test_the_target_is_whole_afterwards(server, target, length):
    """Dense, and with everything kept: the same numbers, and Hugging Face's."""
    ids = prompt_ids(length, seed=3)
    server.generate(ids, custom=CUSTOM)
    wanted = reference.greedy(target, ids, range(length), length, 8)
    numbers = []
    for custom in ({"spec_prefill": False}, {**CUSTOM, "spec_prefill_keep_ratio": 1}):
        server.flush()
        reply = server.generate(ids, custom=custom, return_logprob=True)
        assert_answer(reply, *wanted, TOLERANCE)
        numbers.append([one[0] for one in reply["meta_info"]["output_token_logprobs"]])
    assert reply["meta_info"]["spec_prefill"]["positions"] == list(range(length))
    assert numbers[0] == numbers[1]


def test_a_prefix_is_read_once_and_pools_return(server):
    ids = prompt_ids(1023, seed=9)
    first, second = (server.generate([*ids, *prompt_ids(60, seed=seed)], custom=CUSTOM) for seed in (1, 2))
    cached = [reply["meta_info"]["spec_prefill"]["draft_cached_tokens"] for reply in (first, second)]
    assert cached == [0, 1023 + (_common(prompt_ids(60, seed=1), prompt_ids(60, seed=2)))]
    _nothing_is_held(server)


def test_a_request_may_ask_for_the_draft(server):
    custom = {**CUSTOM, "spec_prefill_method": "draft"}
    infos = [server.generate(prompt_ids(700, seed=4), custom=one)["meta_info"]["spec_prefill"] for one in (CUSTOM, custom)]
    assert [info["method"] for info in infos] == ["early-layers", "draft"]
    assert infos[0]["positions"] != infos[1]["positions"]
    response = server.post("/generate", body_of(prompt_ids(99, seed=5), custom={"spec_prefill_method": "lazy"}))
    assert (response.status_code, "early-layers or draft" in response.text) == (400, True)


def test_three_turns_of_a_conversation(server, kept, target):
    """Each keeps what the turn before it kept, then its answer, and adds what the first layers would keep afresh."""
    ids, before, turns = prompt_ids(1100, seed=50), [], []
    for number in range(3):
        reply = server.generate(ids, custom=CUSTOM, params={"max_new_tokens": 12})
        info, answer = reply["meta_info"]["spec_prefill"], reply["output_ids"]
        fresh = kept(ids, 0.2)
        assert info["positions"] == before + [position for position in fresh if position not in set(before)]
        assert reply["meta_info"]["cached_tokens"] == max(len(before) - 1, 0)  # the last token was never fed back
        assert answer == reference.greedy(target, ids, info["positions"], len(ids), 12)[0]
        turns.append((fresh, info["positions"]))
        before = info["positions"] + list(range(len(ids), len(ids) + 12))
        ids = ids + answer + prompt_ids(90, seed=60 + number)
    assert all(set(old) - set(fresh) for (_, old), (fresh, _) in itertools.pairwise(turns))  # or nothing had to be kept


def test_mixed_requests_at_once(server, right, pair_of, hugging_face):
    """Dense and sparse, of both methods and selections, some with a beginning that others have too."""
    judge = Judge(*map(hugging_face, pair_of("llama")), layers=LAYERS)
    requests = [
        (ids, {**custom, "spec_prefill_selection": "paper", "spec_prefill_method": "draft" if at % 8 == 3 else "early-layers"})
        for at, (ids, custom) in enumerate(mixed_requests(16))
    ]
    own = [(prompt_ids(length, seed=length), {**CUSTOM, "spec_prefill_keep_ratio": 0.3}) for length in (90, 150, 640, 1050)]
    replies = all_at_once(server, requests + own, max_new_tokens=8)
    assert judge.wrong(replies[:16], requests) == []
    for reply, (ids, _) in zip(replies[16:], own, strict=True):
        right(reply, ids, 0.3)
    again = all_at_once(server, requests, max_new_tokens=8)  # now with a full radix cache
    assert judge.wrong(again, requests) == []
    _nothing_is_held(server)


def test_a_stream_decodes_between_the_chunks_of_others(server, faults, right):
    """With 0.2 s for each chunk of those others, so that what happens in between can be seen; all are right."""
    ids, others = prompt_ids(700, seed=20), [prompt_ids(length, seed=length) for length in (1050, 2100)]
    running = Stream(server, ids, CUSTOM, 120)
    until(lambda: running.times)
    faults.switch("slow_step")
    try:
        sent = time.monotonic()
        streams = [Stream(server, other, CUSTOM, 4) for other in others]
        until(lambda: all(stream.times for stream in streams))
    finally:
        faults.switch("slow_step", on=False)
    read = min(stream.times[0] for stream in streams)
    for stream, prompt in [(running, ids), *zip(streams, others, strict=True)]:
        stream.join()
        right(stream.last, prompt, 0.2)
    assert len([at for at in running.times if sent < at < read]) >= 1050 // 512


@pytest.mark.parametrize("when", ["reading", "decoding"])
def test_an_abort_gives_everything_back(server, faults, right, when):
    faults.switch("slow_step", on=when == "reading")  # 0.2 s for each of eight chunks
    try:
        stream = Stream(server, prompt_ids(4000, seed=30), CUSTOM, 2000)
        until(lambda: stream.times or (when == "reading" and server.load()["num_waiting_reqs"]))
        assert server.post("/abort_request", {"rid": stream.rid}).status_code == 200
        stream.join()
    finally:
        faults.switch("slow_step", on=False)
    info = stream.last["meta_info"]
    assert info["finish_reason"]["type"] == "abort"
    assert (0 < info["completion_tokens"] < 2000) == (when == "decoding")
    _nothing_is_held(server)
    ids = prompt_ids(500, seed=31)
    right(server.generate(ids, custom=CUSTOM), ids, 0.2)


def _nothing_is_held(server):
    server.flush()
    assert server.load()["num_used_tokens"] == 0
    state = server.state()["spec_prefill"]
    for method in ("early_layers", "draft"):
        assert state[f"{method}_available_tokens"] == state[f"{method}_max_tokens"]


def _common(one, other):
    return next(at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
