"""Predicted KV: exactly what the predictor says, in the target's pool and in the answer; and nobody else's."""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

from specprefill_sgl.request.skipcode import PREDICTED
from tests.support import predictors, reference
from tests.support.faults import RETRACTING, plugin_on_path
from tests.support.server import serve, sparse_options
from tests.support.streams import Stream, until
from tests.support.tiny_models import prompt_ids

CUSTOM = {"spec_prefill": True, "spec_prefill_method": "kv-prediction"}
TAIL, LAYERS = 32, 2
METHODS = ("dense", "draft", "early-layers", "kv-prediction")


class Right:
    """Says whether an answer is that of what its reply says was computed, by Hugging Face alone."""

    def __init__(self, model, predictor):
        self._greedy = functools.cache(lambda ids, kept, n: reference.greedy(model, ids, kept, len(ids), n)[0])
        self._kv = functools.cache(lambda ids: predictors.predicted(model, predictor, list(ids)))
        self._predicted = functools.cache(lambda ids, first, n: predictors.answer(model, self._kv(ids), list(ids), first, n))

    def kv(self, ids):
        """Keys and values of a prompt by layer, as they are to be published."""
        return self._kv(tuple(ids))

    def __call__(self, reply, ids) -> bool:
        info, said = reply["meta_info"]["spec_prefill"], reply["output_ids"]
        if info["predicted_tokens"]:
            return said == self._predicted(tuple(ids), info["predicted_tokens"], len(said))
        return said == self._greedy(tuple(ids), tuple(info.get("positions") or range(len(ids))), len(said))


EXACT = [
    pytest.param(("qwen3", predictors.save_identity, ()), id="qwen3, the target as draft"),
    pytest.param(("llama", predictors.save_identity, ()), id="llama, the target as draft", marks=pytest.mark.slow),
    pytest.param(("llama", predictors.save_copies, ("--page-size", "16")), id="llama, its layers", marks=pytest.mark.slow),
    pytest.param(("qwen3", predictors.save_copies, ("--tp", "2")), id="qwen3, its layers, two ranks", marks=pytest.mark.slow),
    pytest.param(("qwen3", predictors.save_identity, ("--tp", "2")), id="qwen3, two ranks", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=EXACT)
def exact(request, pair_of, tmp_path_factory):
    """A server whose predictor loses nothing: (server, target, page)."""
    family, save, flags = request.param
    target, folder = pair_of(family)[0], tmp_path_factory.mktemp("exact")
    draft = target if save is predictors.save_identity else None
    options = sparse_options(draft, method="kv-prediction", predictor=save(folder / "predictor", target), tail=TAIL)
    with serve(folder, target, *options, *flags) as server:
        yield server, target, 16 if "--page-size" in flags else 1


@pytest.mark.parametrize("length", [70, 512, 1023, 2100])
def test_a_predictor_that_loses_nothing_answers_as_dense(exact, hugging_face, length):
    server, target, page = exact
    ids = prompt_ids(length, seed=length)
    reply = server.generate(ids, custom=CUSTOM)
    info, first = reply["meta_info"]["spec_prefill"], (length - TAIL) // page * page
    assert (info["method"], info["predicted_tokens"], info["kept_tokens"]) == ("kv-prediction", first, length)
    assert reply["meta_info"]["cached_tokens"] == first
    assert reply["output_ids"] == reference.greedy(hugging_face(target), ids, range(length), length, 8)[0]


PREDICTING = [
    pytest.param((), id="one rank"),
    pytest.param(("--tp", "2"), id="two ranks", marks=pytest.mark.slow),
    pytest.param(("--disable-overlap-schedule", "--enable-mixed-chunk"), id="no overlap, mixed", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=PREDICTING)
def predicting(request, pair_of, hugging_face, tmp_path_factory):
    """A server of several methods whose predictor answers otherwise than dense: (server, what was published, judge)."""
    target, draft = pair_of("llama")
    folder = tmp_path_factory.mktemp("predicting")
    predictor = predictors.save_random(folder / "predictor", target, LAYERS)
    dump = predictors.Dump(folder / "dump")
    with serve(folder, target, *_options(draft, predictor), *request.param, env=dump.env) as server:
        yield server, dump, Right(hugging_face(target), predictor)


def _options(draft, predictor):
    return sparse_options(draft, method="draft,early-layers,kv-prediction", layers=LAYERS, predictor=predictor, tail=TAIL)


@pytest.fixture
def server(predicting):
    """With nothing cached."""
    predicting[0].flush()
    return predicting[0]


@pytest.fixture
def dump(predicting):
    return predicting[1]


@pytest.fixture
def right(predicting):
    return predicting[2]


@pytest.mark.parametrize("length", [100, 1100])
def test_published_kv_is_what_the_predictor_says(server, dump, right, length):
    ids = prompt_ids(length, seed=length)
    reply = server.generate(ids, custom=CUSTOM)
    _, codes, published = dump.read()
    assert codes == [token | PREDICTED for token in ids[: length - TAIL]]
    heads = slice(0, published[0][0].shape[1])  # of the last rank that wrote the file, or of all
    for number, (own, wanted) in enumerate(zip(published, right.kv(ids), strict=True)):
        for one, other in zip(own, wanted, strict=True):
            parts = [other[: length - TAIL, heads], other[: length - TAIL, -heads.stop :]]
            assert min((one - part).abs().max() / part.abs().max() for part in parts) < 1e-4, number
    assert right(reply, ids)


def test_another_question_is_predicted_from_where_the_document_ends(server, dump, right):
    document, questions = prompt_ids(600, seed=1), [prompt_ids(50, seed=seed) for seed in (2, 3)]
    replies = [server.generate(document + question, custom=CUSTOM) for question in questions]
    cached, codes, _ = dump.read()
    assert (len(codes), 600 <= cached < 602) == (650 - TAIL, True)
    assert all(right(reply, document + question) for reply, question in zip(replies, questions, strict=True))
    assert [reply["meta_info"]["cached_tokens"] for reply in replies] == [650 - TAIL] * 2
    again = server.generate(document + questions[0], custom=CUSTOM)
    assert again["output_ids"] == replies[0]["output_ids"]


def _ask(server, ids, method, **how):
    fields = {"spec_prefill": False} if method == "dense" else {"spec_prefill_method": method}
    return server.generate(ids, custom={**fields, "spec_prefill_return_positions": True}, **how)


def _wrong_pairs(server, right):
    """Ordered pairs of methods of which one or the other answered wrong to one prompt, and a turn that continues it."""
    wrong = []
    for number, pair in enumerate(itertools.product(METHODS, repeat=2)):
        ids = prompt_ids(300 + number, seed=500 + number)
        replies = [_ask(server, ids, method) for method in pair]
        more = ids + replies[0]["output_ids"] + prompt_ids(40, seed=600 + number)
        replies.append(_ask(server, more, pair[1]))
        if not all(map(right, replies, (ids, ids, more))):
            wrong.append(pair)
    return wrong


def test_no_two_methods_share_kv_that_is_wrong_for_one_of_them(server, right):
    assert _wrong_pairs(server, right) == []


def test_many_at_once_of_all_methods(server, right):
    requests = [(prompt_ids(200 + 37 * number, seed=700 + number % 5), METHODS[number % 4]) for number in range(20)]
    for _ in range(2):  # with a full radix cache the second time
        with ThreadPoolExecutor(len(requests)) as pool:
            replies = list(pool.map(lambda request: _ask(server, *request), requests))
        assert [request for request, reply in zip(requests, replies, strict=True) if not right(reply, request[0])] == []
        assert any(reply["meta_info"]["spec_prefill"]["predicted_tokens"] for reply in replies)


def test_an_abort_and_a_flush_give_everything_back(server, right):
    stream = Stream(server, prompt_ids(900, seed=30), CUSTOM, 2000)
    until(lambda: stream.times)
    assert server.post("/abort_request", {"rid": stream.rid}).status_code == 200
    stream.join()
    server.flush()
    assert server.load()["num_used_tokens"] == 0
    state = server.state()["spec_prefill"]
    assert state["kv_prediction_available_tokens"] == state["kv_prediction_max_tokens"]
    ids = prompt_ids(500, seed=31)
    assert right(server.generate(ids, custom=CUSTOM), ids)


def test_everything_kept_is_dense(server, right):
    ids = prompt_ids(400, seed=40)
    reply = server.generate(ids, custom={**CUSTOM, "spec_prefill_keep_ratio": 1})
    assert reply["meta_info"]["spec_prefill"]["predicted_tokens"] == 0
    assert right(reply, ids)


def test_the_log_says_that_it_is_experimental(server):
    assert "kv-prediction is experimental" in server.log.read_text()


def test_other_weights_outdate_the_predictor(server, pair_of, right):
    """The last one on this server: nothing is predicted any more, and the answer says why."""
    ids = prompt_ids(420, seed=41)
    assert server.generate(ids, custom=CUSTOM)["meta_info"]["spec_prefill"]["predicted_tokens"]
    response = server.post("/update_weights_from_disk", {"model_path": str(pair_of("llama")[0])})
    assert response.json()["success"], response.text
    reply = server.generate(ids, custom=CUSTOM)
    info = reply["meta_info"]["spec_prefill"]
    assert (info["applied"], info["reason"], info["predicted_tokens"]) == (False, "predictor_outdated", 0)
    assert right(reply, ids)
    other = server.generate(prompt_ids(420, seed=42), custom={"spec_prefill_method": "draft"})
    assert other["meta_info"]["spec_prefill"]["applied"]


_FAULTY = """
import os


def register():
    from specprefill_sgl.hooks import prediction
    from specprefill_sgl.methods.kv_prediction.writer import Writer
    from specprefill_sgl.request import skipcode

    if {unmarked}:
        skipcode.PREDICTED = 0
    write = Writer.write

    def failing(self, *arguments):
        write(self, *arguments)
        if os.path.exists({switch!r}):
            raise RuntimeError("injected fault after a write")

    Writer.write = failing
"""


def _faulty(folder, *, unmarked=False):
    return plugin_on_path(folder, "specprefill_faulty", _FAULTY.format(unmarked=unmarked, switch=str(folder / "fails")))


@pytest.mark.slow
def test_without_the_bit_methods_do_share_wrong_kv(pair_of, hugging_face, tmp_path):
    """The control of the property above."""
    target, draft = pair_of("llama")
    predictor = predictors.save_random(tmp_path / "predictor", target, LAYERS)
    env = _faulty(tmp_path / "faulty", unmarked=True)
    with serve(tmp_path, target, *_options(draft, predictor), env=env) as server:
        wrong = _wrong_pairs(server, Right(hugging_face(target), predictor))
    assert {("kv-prediction", "dense"), ("dense", "kv-prediction")} & set(wrong)


@pytest.mark.slow
def test_lazy_and_predictions_do_not_meet(pair_of, hugging_face, tmp_path):
    """In both orders; what lazy answers is what it answers with nothing cached."""
    target, _ = pair_of("llama")
    predictor = predictors.save_random(tmp_path / "predictor", target, LAYERS)
    options = sparse_options(None, method="lazy,kv-prediction", layers=LAYERS, predictor=predictor, tail=TAIL)
    with serve(tmp_path, target, *options) as server:
        right = Right(hugging_face(target), predictor)
        for seed in range(4):
            ids = prompt_ids(400 + seed, seed=seed)
            server.flush()
            fresh = _ask(server, ids, "lazy")["output_ids"]
            for pair in (("lazy", "kv-prediction"), ("kv-prediction", "lazy")):
                server.flush()
                said = {method: _ask(server, ids, method) for method in pair}
                assert said["lazy"]["output_ids"] == fresh
                assert said["kv-prediction"]["meta_info"]["spec_prefill"]["predicted_tokens"] == len(ids) - TAIL
                assert right(said["kv-prediction"], ids)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--tp", "2")], ids=["one rank", "two ranks"])
def test_under_pressure_retraction_and_faults(pair_of, hugging_face, tmp_path, flags):
    """A pool of a few prompts, requests that are retracted, writes that fail: each answer is that of what its reply says."""
    target, draft = pair_of("llama")
    predictor = predictors.save_random(tmp_path / "predictor", target, LAYERS)
    env = _faulty(tmp_path / "faulty") | RETRACTING
    small = ("--max-total-tokens", "3000")
    with serve(tmp_path, target, *_options(draft, predictor), *small, *flags, env=env) as server:
        right = Right(hugging_face(target), predictor)
        requests = [(prompt_ids(500 + 61 * n, seed=800 + n), METHODS[-1 if n % 3 else 0]) for n in range(14)]
        with ThreadPoolExecutor(len(requests)) as pool:
            replies = list(pool.map(lambda one: _ask(server, *one, params={"max_new_tokens": 24}), requests))
        reasons = [reply["meta_info"]["spec_prefill"]["reason"] for reply in replies]
        assert set(reasons) <= {None, "disabled_by_request", "prediction_evicted"}
        assert None in reasons
        # one that lost its prediction on the way has an answer of two parts
        whole = [at for at, reason in enumerate(reasons) if reason != "prediction_evicted"]
        assert [at for at in whole if not right(replies[at], requests[at][0])] == []
        (tmp_path / "faulty" / "fails").touch()
        ids = prompt_ids(600, seed=900)
        reply = server.generate(ids, custom=CUSTOM)
        assert reply["meta_info"]["spec_prefill"]["reason"] == "draft_error"
        assert right(reply, ids)
        (tmp_path / "faulty" / "fails").unlink()
        reply = server.generate(prompt_ids(600, seed=901), custom=CUSTOM)
        assert reply["meta_info"]["spec_prefill"]["predicted_tokens"] == 600 - TAIL
        server.flush()
        assert server.load()["num_used_tokens"] == 0
