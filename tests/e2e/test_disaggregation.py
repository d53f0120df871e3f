"""One server prefills, another decodes: real transfers between two servers (mooncake over TCP), answers as of one server.

What the prefill server dropped never reaches the decode server, which learns how much that was and continues behind it.
"""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.support import reference
from tests.support.disaggregation import INSTALL, MOONCAKE, serve_decode, serve_prefill
from tests.support.faults import RETRACTING, plugin_on_path
from tests.support.mixture import assert_same_mixture
from tests.support.server import CONTROL, body_of, sparse_options
from tests.support.streams import Stream, until
from tests.support.tiny_models import prompt_ids

pytestmark = [pytest.mark.slow, pytest.mark.skipif(MOONCAKE is None, reason=INSTALL)]

# their first turns' answers are on the decode server, all but the first token of each
SECOND_TURNS = ("7 and on", "9 and on", "11 and on")
SPARSE = {"spec_prefill_keep_ratio": 0.3, "spec_prefill_return_positions": True}


@pytest.fixture(scope="module")
def prefill(pair_of, tmp_path_factory):
    target, draft = pair_of("llama")
    with serve_prefill(tmp_path_factory.mktemp("prefill"), target, *sparse_options(draft)) as server:
        yield server


@pytest.fixture(scope="module")
def pair(pair_of, prefill, tmp_path_factory):
    with serve_decode(prefill, tmp_path_factory.mktemp("decode"), pair_of("llama")[0], *sparse_options(None)) as both:
        yield both


@pytest.fixture
def greedy(pair_of, hugging_face):
    """Tokens and logprobs of the target that got these positions of a prompt."""
    model = hugging_face(pair_of("llama")[0])
    return lambda ids, positions, tokens: reference.greedy(model, ids, positions, len(ids), tokens)


def _nothing_is_held(pair):
    pair.flush()
    until(lambda: pair.load()["num_running_reqs"] == 0)
    assert pair.load()["num_used_tokens"] == 0


def test_the_mixture(pair, mixture_of):
    assert_same_mixture(pair, mixture_of("llama"), but=SECOND_TURNS)


def test_a_second_turn_keeps_what_the_first_kept(pair, greedy):
    first = prompt_ids(400, seed=1)
    reply = pair.generate(first, custom=SPARSE, params={"max_new_tokens": 8})
    kept = reply["meta_info"]["spec_prefill"]["positions"]
    assert reply["output_ids"] == greedy(first, kept, 8)[0]
    second = [*first, *reply["output_ids"], *prompt_ids(120, seed=2)]
    reply = pair.generate(second, custom=SPARSE, params={"max_new_tokens": 8})
    again = reply["meta_info"]["spec_prefill"]["positions"]
    assert again[: len(kept)] == kept
    assert len(again) < len(second)
    assert reply["meta_info"]["cached_tokens"] >= len(kept) - 1
    assert reply["output_ids"] == greedy(second, again, 8)[0]


def test_what_the_decode_server_says(pair, greedy):
    """Its reply object is the prefill server's, but for lists; counts and logprobs are of the whole prompt and of both."""
    ids = prompt_ids(500, seed=3)
    custom = {**SPARSE, "spec_prefill_return_scores": True, "spec_prefill_return_votes": True}
    room = {"bootstrap_host": "127.0.0.1", "bootstrap_port": pair.prefill.port, "bootstrap_room": 10**12}
    body = body_of(ids, custom=custom, return_logprob=True, **room)
    with ThreadPoolExecutor(2) as pool:
        replies = pool.map(lambda one: one.post("/generate", body).json(), (pair.prefill, pair.decode))
        first, second = (reply["meta_info"] for reply in replies)
    known, said = first["spec_prefill"], second["spec_prefill"]
    lists = {"positions", "scores", "votes"}
    assert {name: said[name] for name in lists} == dict.fromkeys(lists)
    others = said.keys() - lists
    assert others == known.keys() - lists - {"chunk_size"}
    rounded = {"keep_ratio_used", "tokenize_ms", "draft_ms", "score_ms"}  # they travel in 32 bits
    assert {name: said[name] for name in others - rounded} == {name: known[name] for name in others - rounded}
    assert [said[name] for name in rounded] == pytest.approx([known[name] for name in rounded], rel=1e-6, abs=2e-3)
    assert said["applied"]
    assert 0 < said["kept_tokens"] == len(known["positions"]) < 500
    assert min(said["draft_ms"], said["score_ms"]) > 0
    assert second["prompt_tokens"] == 500
    tokens, logprobs = greedy(ids, known["positions"], 8)
    assert [token for _, token, _ in second["output_token_logprobs"]] == tokens
    assert [value for value, _, _ in second["output_token_logprobs"]] == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.parametrize(
    ("length", "custom", "fields", "reason"),
    [
        (10, None, {}, "below_min_tokens"),
        (300, {"spec_prefill": False}, {}, "disabled_by_request"),
        (300, None, {"return_logprob": True, "logprob_start_len": 0}, "prompt_logprobs"),
    ],
)
def test_dense_requests_say_why(pair, greedy, length, custom, fields, reason):
    ids = prompt_ids(length, seed=4)
    reply = pair.generate(ids, custom=custom, **fields)
    assert reply["meta_info"]["spec_prefill"]["reason"] == reason
    assert not reply["meta_info"]["spec_prefill"]["applied"]
    assert reply["output_ids"] == greedy(ids, list(range(length)), 8)[0]


def test_everything_kept(pair, greedy):
    ids = prompt_ids(200, seed=5)
    reply = pair.generate(ids, custom={"spec_prefill_keep_ratio": 1.0})
    assert reply["meta_info"]["spec_prefill"]["applied"]
    assert reply["meta_info"]["spec_prefill"]["kept_tokens"] == 200
    assert reply["output_ids"] == greedy(ids, list(range(200)), 8)[0]


def test_streams_and_openai_routes(pair):
    ids = prompt_ids(300, seed=6)
    whole = pair.generate(ids, custom=SPARSE)
    stream = Stream(pair, ids, SPARSE, 8)
    stream.join()
    assert stream.last["output_ids"] == whole["output_ids"]
    assert stream.last["meta_info"]["spec_prefill"]["kept_tokens"] == whole["meta_info"]["spec_prefill"]["kept_tokens"]
    body = {"model": "default", "prompt": ids, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "custom_params": SPARSE}
    reply = pair.post("/v1/completions", body).json()
    assert reply["choices"][0]["text"] == whole["text"]
    assert reply["usage"]["prompt_tokens"] == 300


def test_a_hundred_requests_leave_nothing(pair):
    """More than SGLang has rows for what is handed over."""
    pair.flush()
    before = pair.draft_pools()

    def ask(at):
        ids = prompt_ids(60 + 3 * at, seed=700 + at)
        custom = {"spec_prefill": at % 4 > 0, "spec_prefill_keep_ratio": 0.2}
        return pair.generate(ids, custom=custom, params={"max_new_tokens": 4})

    with ThreadPoolExecutor(16) as pool:
        applied = [reply["meta_info"]["spec_prefill"]["applied"] for reply in pool.map(ask, range(100))]
    assert applied == [at % 4 > 0 for at in range(100)]
    _nothing_is_held(pair)
    assert pair.draft_pools() == before


@pytest.mark.parametrize("who", ["prefill", "decode"])
@pytest.mark.parametrize("pause", [0.0, 0.3, 3.0])
def test_aborts_on_either_side(pair, who, pause):
    """While they wait, while they are drafted, while they are answered."""
    streams = [Stream(pair, prompt_ids(800, seed=20 + at), SPARSE, 2000) for at in range(4)]
    time.sleep(pause)
    for stream in streams:
        requests.post(getattr(pair, who).url + "/abort_request", json={"rid": stream.rid}, timeout=60)
    time.sleep(1)
    requests.post(pair.url + "/abort_request", json={"abort_all": True}, timeout=60)
    for stream in streams:
        stream.join()
    _nothing_is_held(pair)
    assert pair.generate(prompt_ids(100, seed=30))["meta_info"]["spec_prefill"]["applied"]


@pytest.mark.parametrize("fields", [{"spec_prefill_revive_every": 8}, {"spec_prefill_backfill": "turn"}])
def test_what_cannot_return_is_refused(pair, fields):
    for server, mode in ((pair.prefill, "prefill"), (pair.decode, "decode")):
        reply = server.post("/generate", body_of(prompt_ids(100, seed=1), custom=fields))
        assert reply.status_code == 400
        assert f"{next(iter(fields))} cannot be used: the server was started with --disaggregation-mode {mode}" in reply.text


def test_new_weights_make_a_running_answer_dense(pair, pair_of, hugging_face):
    """SGLang has the prefill server read the prompt and the answer so far again."""
    ids = prompt_ids(300, seed=8)
    stream = Stream(pair, ids, SPARSE, 400)
    until(lambda: len(stream.said) > 10)
    pair.decode.post("/pause_generation", {"mode": "retract"})
    time.sleep(1)
    pair.decode.post("/continue_generation", {})
    stream.join()
    info = stream.last["meta_info"]["spec_prefill"]
    said = info["backfilled"]
    assert 0 < said < 400
    kept = pair.generate(ids, custom=SPARSE)["meta_info"]["spec_prefill"]["positions"]
    prefills = [(0, kept), (said, list(range(300)))]
    assert stream.last["output_ids"] == reference.greedy_revived(hugging_face(pair_of("llama")[0]), ids, prefills, 300, 400)
    _nothing_is_held(pair)


UNDONE = """
def register():
    from specprefill_sgl.hooks import decode_side
    decode_side._shorten = lambda *_: None
"""


def test_without_the_hook_answers_would_be_wrong(prefill, pair_of, greedy, tmp_path):
    """The negative control: the decode server takes what it got for the whole prompt."""
    ids = prompt_ids(300, seed=9)
    env = plugin_on_path(tmp_path / "plugin", "undoing", UNDONE)
    with serve_decode(prefill, tmp_path, pair_of("llama")[0], *sparse_options(None), env=env) as pair:
        reply = pair.generate(ids, custom=SPARSE)
    assert reply["output_ids"] != greedy(ids, reply["meta_info"]["spec_prefill"]["positions"], 8)[0]


@pytest.mark.parametrize("control", [{}, CONTROL], ids=["without --spec-prefill", "without the plugin"])
def test_a_decode_server_that_cannot_continue_fails(prefill, pair_of, greedy, tmp_path, control):
    """It must not answer as if it had got the whole prompt; dense requests are its own as ever."""
    ids = prompt_ids(300, seed=10)
    with serve_decode(prefill, tmp_path, pair_of("llama")[0], env=control) as pair:
        short = ids[:12]
        assert pair.generate(short)["output_ids"] == greedy(short, list(range(12)), 8)[0]
        for _ in range(3):
            reply = pair.post("/generate", body_of(ids))
            assert reply.status_code == 500, reply.text
            wanted = "Metadata corruption detected" if control else "it runs without --spec-prefill"
            assert wanted in reply.text
        _nothing_is_held(pair)


# ways in which SGLang orders prefill and handover: the prompt is prefilled before the decode server is ready, and one time in
# two anew; the decode server makes room when the prompt has been prefilled
ORDERS = {
    "early": (("--optimistic-prefill-attempts", "3"), (), {"SGLANG_TEST_FORCE_OPTIMISTIC_PREFILL_RETRY_PROB": "0.5"}),
    "late": (*[("--disaggregation-decode-allocation-policy", "prefill_complete")] * 2, {}),
}


@pytest.mark.parametrize("order", ORDERS)
def test_pages_chunks_and_retraction(pair_of, mixture_of, tmp_path, order):
    """Pages of several tokens, of which the last is kept in part, and a decode server that takes requests back all the time."""
    target, draft = pair_of("llama")
    pages, (first, second, env) = ("--page-size", "16", "--chunked-prefill-size", "64"), ORDERS[order]
    with (
        serve_prefill(tmp_path, target, *sparse_options(draft), *pages, *first, env=env) as prefill,
        serve_decode(prefill, tmp_path, target, *sparse_options(None), *pages, *second, env=RETRACTING) as pair,
    ):
        assert_same_mixture(pair, mixture_of("llama"), but=SECOND_TURNS)
        assert re.search(r"#retracted_reqs: [1-9]", pair.decode.log.read_text())
        assert ("optimistic prefill yielded" in prefill.log.read_text()) == (order == "early")


def test_two_ranks_on_both_sides(pair_of, mixture_of, tmp_path):
    target, draft = pair_of("llama")
    with (
        serve_prefill(tmp_path, target, *sparse_options(draft), "--tp", "2") as prefill,
        serve_decode(prefill, tmp_path, target, *sparse_options(None), "--tp", "2") as pair,
    ):
        assert_same_mixture(pair, mixture_of("llama"), but=SECOND_TURNS)
