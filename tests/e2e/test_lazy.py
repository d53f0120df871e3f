"""The method lazy drops tokens layer by layer as an independent Hugging Face reference of it does; others are unharmed."""

import itertools

import pytest

from specprefill_sgl.calibration import heads_file
from tests.support import lazy_reference, reference, tiny_models
from tests.support.answers import all_at_once
from tests.support.server import body_of, serve, sparse_options
from tests.support.speculative import INTERPRETED
from tests.support.streams import Stream, until
from tests.support.tiny_models import prompt_ids

RATIO = 0.3
RULES = {"best": lazy_reference.BEST, "paper": lazy_reference.PAPER}
TWO_RANKS = ("--tp", "2")
# (layer, head), one and two on each of two ranks; in front of layer 3 none votes, and what lies above is never asked
HEADS = ((0, 1), (1, 3), (0, 2), (3, 0))
MORE_HEADS = (*HEADS, (2, 3), (2, 2), (2, 0))
NO_OVERLAP = ("--disable-overlap-schedule",)
CASES = [
    pytest.param(("llama", (2, 3), HEADS, TWO_RANKS), id="llama, two layers, heads, two ranks"),
    pytest.param(("llama", (2, 3), MORE_HEADS, ()), id="llama, two layers, heads", marks=pytest.mark.slow),
    pytest.param(("qwen3", (2, 3), MORE_HEADS, TWO_RANKS), id="qwen3, two layers, heads, two ranks", marks=pytest.mark.slow),
    pytest.param(("llama", (2,), HEADS, NO_OVERLAP), id="llama, one layer, heads, no overlap", marks=pytest.mark.slow),
    pytest.param(("llama", (2, 3), (), TWO_RANKS), id="llama, two layers, two ranks", marks=pytest.mark.slow),
    pytest.param(("qwen3", (2,), (), TWO_RANKS), id="qwen3, one layer, two ranks", marks=pytest.mark.slow),
    pytest.param(("qwen3", (2, 3), (), ()), id="qwen3, two layers", marks=pytest.mark.slow),
    pytest.param(("llama", (2,), (), NO_OVERLAP), id="llama, one layer, no overlap", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=CASES)
def case(request, pair_of, hugging_face, tmp_path_factory):
    """A server with the methods lazy and draft, the target, the layers from which on tokens are dropped, calibrated heads."""
    family, layers, heads, flags = request.param
    folder = tmp_path_factory.mktemp("lazy")
    target = tiny_models.save_deep(family, folder / "target", layers=4)
    options = {"method": "lazy,draft", "layers": ",".join(map(str, layers)), "keep_ratio": RATIO, "selection": "best"}
    if heads:
        options["heads"] = folder / "heads.json"
        heads_file.save(options["heads"], target, heads, {})
    with serve(folder, target, *sparse_options(pair_of("llama")[1], **options), *flags) as server:
        yield server, hugging_face(target), layers, heads


@pytest.fixture(scope="module")
def server(case):
    return case[0]


@pytest.fixture(scope="module")
def lazy(case):
    """The reference, of a rule, with these heads or others."""
    _, model, layers, heads = case
    keep = [RATIO ** (stage / len(layers)) for stage in range(1, len(layers) + 1)]
    return lambda rule, heads=heads: lazy_reference.Lazy(model, layers, RULES[rule], keep, heads)


@pytest.fixture(scope="module")
def right(case, lazy):
    """Whether a reply has the reference's tokens, and what each layer kept."""
    layers = case[2]

    def judge(reply, ids, rule="best", *, cached=0, returns=None):
        info, tokens = reply["meta_info"]["spec_prefill"], reply["output_ids"]
        assert (info["applied"], info["method"]) == (True, "lazy")
        given = [info["positions"]] if cached else None
        assert not cached or info["positions"][:cached] == list(range(cached))
        wanted, kept = lazy(rule).answer(ids, len(tokens), cached=cached, kept=given, returns=returns)
        assert info["kept_by_layer"] == [[layer, len(own)] for layer, own in zip(layers, kept, strict=True)]
        assert info["positions"] == kept[-1]
        assert tokens == wanted

    return judge


def ask(server, ids, tokens=12, **custom):
    custom = {f"spec_prefill_{name}": value for name, value in {"return_positions": True, **custom}.items()}
    return server.generate(ids, custom=custom, params={"max_new_tokens": tokens})


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("length", [60, 512, 1300])
def test_equals_the_reference(server, right, length, rule):
    """Of one, exactly one and three chunks."""
    ids = prompt_ids(length, seed=length)
    right(ask(server, ids, selection=rule), ids, rule)


def test_other_heads_would_keep_other_tokens(case, lazy):
    """Each that votes; or a server that ignores it would equal the reference, too."""
    layers, heads, ids = case[2], case[3], prompt_ids(512, seed=512)
    if not heads:
        pytest.skip("none are calibrated")
    kept = lazy("best").answer(ids, 1)[1]
    others = [lazy("best", [head for head in heads if head != one]).answer(ids, 1)[1] for one in heads if one[0] < layers[-1]]
    assert kept not in [*others, lazy("best", ()).answer(ids, 1)[1]]


def test_the_log_says_where_no_head_votes(case):
    server, _, layers, heads = case
    log = server.log.read_text()
    assert ("at layer 3 the last quarter below it votes" in log) == (layers == (2, 3) and heads == HEADS)
    assert (f"1 of {len(heads)} calibrated heads are in layers from {layers[-1]} on" in log) == bool(heads)


def test_beside_others(case, server, right):
    """Lazy requests of both rules, dense ones and those of a draft: prefilled and decoded together, each by its own rule."""
    lengths = (90, 700, 333, 1100)
    requests = [(prompt_ids(lengths[at % 4], seed=at), custom) for at, custom in enumerate(_customs() * 4)]
    replies = all_at_once(server, [(ids, {**custom, "spec_prefill_return_positions": True}) for ids, custom in requests])
    for reply, (ids, custom) in zip(replies, requests, strict=True):
        info = reply["meta_info"]["spec_prefill"]
        if info["method"] == "lazy":
            right(reply, ids, custom["spec_prefill_selection"])
        else:
            assert (info["method"] == "draft") == ("spec_prefill_method" in custom)
            assert reply["output_ids"] == reference.greedy(case[1], ids, info["positions"], len(ids), 12)[0]
    _nothing_is_held(server)


def _customs():
    return [
        {"spec_prefill_selection": "best"},
        {"spec_prefill": False},
        {"spec_prefill_selection": "paper"},
        {"spec_prefill_method": "draft"},
    ]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("length", [500, 900])
def test_what_an_answer_asks_for_returns(server, right, length, rule):
    """Parked tokens run through the layers that they are not in, each once; what was computed stays as it was."""
    ids = prompt_ids(length, seed=length + 1)
    reply = ask(server, ids, tokens=24, selection=rule, revive_every=3, revive_chunks=4)
    info = reply["meta_info"]["spec_prefill"]
    assert info["revived_tokens"] > 0 or length < 900  # or nothing is shown
    assert info["asked_after"][0] == 4
    right(reply, ids, rule, returns=(set(info["asked_after"]), 4))


def test_those_that_ask_decode_with_others(server, right):
    jobs = [(prompt_ids(200 + 90 * at, seed=300 + at), at) for at in range(6)]
    customs = [{"spec_prefill_revive_every": at, "spec_prefill_revive_chunks": 4} if at % 2 else {} for _, at in jobs]
    requests = [(ids, {**more, "spec_prefill_return_positions": True}) for (ids, _), more in zip(jobs, customs, strict=True)]
    for reply, (ids, _) in zip(all_at_once(server, requests, max_new_tokens=20), requests, strict=True):
        asked = set(reply["meta_info"]["spec_prefill"]["asked_after"])
        right(reply, ids, returns=(asked, 4))
    _nothing_is_held(server)


def test_methods_share_nothing_that_is_wrong_for_one(server):
    """Over ordered pairs of methods on one prompt: the second answer is that of a server without the first."""
    customs = {
        "dense": {"spec_prefill": False},
        "lazy": {},
        "draft": {"spec_prefill_method": "draft"},
    }
    ids = prompt_ids(640, seed=640)

    def answer(name):
        return server.generate(ids, custom=customs[name], params={"max_new_tokens": 10})

    alone = {}
    for name in customs:
        server.flush()
        alone[name] = answer(name)["output_ids"]
    assert len(set(map(tuple, alone.values()))) == 3  # or nothing is shown
    cached = set()
    for one, other in itertools.product(customs, repeat=2):
        server.flush()
        answer(one)
        reply = answer(other)
        if reply["meta_info"]["cached_tokens"] > 1:
            cached.add((one, other))
        assert reply["output_ids"] == alone["dense" if one == "dense" else other], (one, other)  # what is whole is for all
    assert cached == {("dense", "dense"), ("dense", "lazy"), ("dense", "draft"), ("draft", "draft")}


def test_after_a_dense_prefix(server, right, case):
    """What the radix cache has whole is kept in all layers."""
    if len(case[2]) > 1:
        pytest.skip("the reply has the last layer's positions only, from which the reference starts")
    server.flush()
    ids = prompt_ids(700, seed=77)
    server.generate(ids[:300], custom={"spec_prefill": False}, params={"max_new_tokens": 1})
    reply = ask(server, ids)
    assert reply["meta_info"]["cached_tokens"] == 300
    right(reply, ids, cached=300)


@pytest.mark.parametrize("when", ["reading", "decoding"])
def test_an_abort_gives_everything_back(server, right, when):
    length = 7000 if when == "reading" else 600
    stream = Stream(server, prompt_ids(length, seed=30), {"spec_prefill_revive_every": 5}, 1000)
    until(lambda: stream.times or (when == "reading" and server.load()["num_used_tokens"] > 500))
    assert server.post("/abort_request", {"rid": stream.rid}).status_code == 200
    stream.join()
    assert stream.last["meta_info"]["finish_reason"]["type"] == "abort"
    assert bool(stream.last["meta_info"]["completion_tokens"]) == (when == "decoding")
    _nothing_is_held(server)
    ids = prompt_ids(500, seed=31)
    right(ask(server, ids), ids)


@pytest.mark.parametrize(
    ("custom", "said"),
    [
        ({"spec_prefill_method": "early-layers"}, "lazy or draft"),
        ({"spec_prefill_backfill": "turn"}, "spec_prefill_backfill cannot be used with the method lazy"),
    ],
)
def test_what_cannot_be_asked_for_is_a_bad_request(server, custom, said):
    response = server.post("/generate", body_of(prompt_ids(99, seed=5), custom=custom))
    assert (response.status_code, said in response.text) == (400, True)


@pytest.mark.slow
def test_one_layer_keeps_what_first_layers_keep(pair_of, tmp_path):
    """The same layers read the same tokens; one file is for both methods."""
    target, file = pair_of("llama")[0], tmp_path / "heads.json"
    heads_file.save(file, target, HEADS[:3], {})
    options = {
        "method": "lazy,early-layers",
        "layers": 2,
        "keep_ratio": RATIO,
        "selection": "best",
        "heads": file,
        "keep_first": 4,
    }
    with serve(tmp_path, target, *sparse_options(None, **options)) as server:
        for length in (60, 512, 1300):
            ids = prompt_ids(length, seed=length)
            infos = [ask(server, ids, method=one)["meta_info"]["spec_prefill"] for one in ("lazy", "early-layers")]
            assert [info["method"] for info in infos] == ["lazy", "early-layers"]
            assert infos[0]["positions"] == infos[1]["positions"]
            server.flush()


@pytest.mark.slow
def test_triton(hugging_face, tmp_path_factory):
    """Its kernels interpreted: prefills of one chunk and of three, beside a dense one, decodes and what returns."""
    folder = tmp_path_factory.mktemp("triton")
    target = tiny_models.save_deep("llama", folder / "target", layers=4)
    options = sparse_options(None, method="lazy", layers="2,3", keep_by_layer="0.5,0.3")
    flags = ["--attention-backend", "triton", "--chunked-prefill-size", "32"]
    lazy = lazy_reference.Lazy(hugging_face(target), (2, 3), lazy_reference.PAPER, (0.5, 0.3))
    custom = {"spec_prefill_revive_every": 2, "spec_prefill_revive_chunks": 2, "spec_prefill_return_positions": True}
    requests = [(prompt_ids(length, seed=length), custom) for length in (24, 70)]
    requests.append((prompt_ids(50, seed=50), {"spec_prefill": False, "spec_prefill_return_positions": True}))
    with serve(folder, target, *options, *flags, env=INTERPRETED) as server:
        replies = all_at_once(server, requests, max_new_tokens=6)
    for reply, (ids, _) in zip(replies[:2], requests, strict=False):
        info = reply["meta_info"]["spec_prefill"]
        assert info["asked_after"] == [3, *info["asked_after"][1:]]
        tokens, kept = lazy.answer(ids, 6, returns=(set(info["asked_after"]), 2))
        assert (reply["output_ids"], info["positions"]) == (tokens, kept[-1])
    assert replies[2]["output_ids"] == reference.greedy(hugging_face(target), requests[2][0], range(50), 50, 6)[0]


def _nothing_is_held(server):
    server.flush()
    assert server.load()["num_used_tokens"] == 0
    assert server.state()["spec_prefill"]["lazy_aux_cache_bytes"] == 0
