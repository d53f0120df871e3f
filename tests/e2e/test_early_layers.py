"""The target's first layers choose what an independent Hugging Face reference of them chooses; the target is unharmed."""

import functools

import pytest

from specprefill_sgl.calibration import heads_file
from tests.support import best_reference, reference
from tests.support.server import body_of, serve, sparse_options
from tests.support.tiny_models import prompt_ids

LAYERS, VOTING = 2, {1}  # of three; without chosen heads the last of the first two
HEADS = ((0, 1), (1, 3))
RULE = {**best_reference.RULE, "lookahead": 1, "window": 48}
CUSTOM = {"spec_prefill_keep_ratio": 0.2, "spec_prefill_return_positions": True}


@pytest.fixture(scope="module", params=["all heads", "chosen heads"])
def case(request, pair_of, tmp_path_factory):
    """A server with two methods, and the votes of its first layers."""
    target, draft = pair_of("llama")
    folder, heads = tmp_path_factory.mktemp("early"), None
    options: dict = {"selection": "best", "method": "early-layers,draft", "layers": LAYERS}
    if request.param == "chosen heads":
        heads_file.save(folder / "heads.json", target, HEADS, {})
        options["heads"], heads = folder / "heads.json", HEADS
    with serve(folder, target, *sparse_options(draft, **options)) as server:
        yield server, heads


@pytest.fixture(scope="module")
def votes_of(case, pair_of, hugging_face):
    model = hugging_face(pair_of("llama")[0])
    among = VOTING if case[1] is None else None

    def votes(length, **how):
        return reference.draft_votes(model, prompt_ids(length, seed=length), heads=case[1], among=among, **how)

    return functools.cache(votes)


@pytest.mark.parametrize("keep_ratio", [0.05, 0.3])
@pytest.mark.parametrize("changed", [{}, {"window": 17, "chunk_size": 32, "over_votes": "mean"}], ids=str)
@pytest.mark.parametrize("length", [33, 1023, 1040])
def test_same_positions_and_tokens(case, pair_of, hugging_face, votes_of, length, changed, keep_ratio):
    server, _ = case
    server.flush()
    fields = {f"spec_prefill_{name}": value for name, value in changed.items()}
    ids = prompt_ids(length, seed=length)
    reply = server.generate(ids, custom={**CUSTOM, **fields, "spec_prefill_keep_ratio": keep_ratio})
    kept = best_reference.kept(votes_of, RULE, changed, length, keep_ratio)
    tokens, _ = reference.greedy(hugging_face(pair_of("llama")[0]), ids, kept, length, 8)
    info = reply["meta_info"]["spec_prefill"]
    assert (info["method"], info["positions"]) == ("early-layers", kept)
    assert reply["output_ids"] == tokens


def test_the_target_is_whole_afterwards(case, pair_of, hugging_face):
    server, _ = case
    ids = prompt_ids(700, seed=3)
    server.generate(ids, custom=CUSTOM)
    wanted, _ = reference.greedy(hugging_face(pair_of("llama")[0]), ids, list(range(700)), 700, 8)
    for custom in ({"spec_prefill": False}, {"spec_prefill_keep_ratio": 1}):
        assert server.generate(ids, custom=custom)["output_ids"] == wanted


def test_a_prefix_is_read_once_and_pools_return(case):
    server, _ = case
    server.flush()
    ids = prompt_ids(1023, seed=9)
    first, second = (server.generate([*ids, *prompt_ids(60, seed=seed)], custom=CUSTOM) for seed in (1, 2))
    cached = [reply["meta_info"]["spec_prefill"]["draft_cached_tokens"] for reply in (first, second)]
    assert cached == [0, 1023 + (_common(prompt_ids(60, seed=1), prompt_ids(60, seed=2)))]
    server.flush()
    state = server.state()["spec_prefill"]
    for method in ("early_layers", "draft"):
        assert state[f"{method}_available_tokens"] == state[f"{method}_max_tokens"]


def test_a_request_may_ask_for_the_draft(case):
    server, _ = case
    server.flush()
    custom = {**CUSTOM, "spec_prefill_method": "draft"}
    infos = [server.generate(prompt_ids(700, seed=4), custom=one)["meta_info"]["spec_prefill"] for one in (CUSTOM, custom)]
    assert [info["method"] for info in infos] == ["early-layers", "draft"]
    assert infos[0]["positions"] != infos[1]["positions"]
    response = server.post("/generate", body_of(prompt_ids(99, seed=5), custom={"spec_prefill_method": "lazy"}))
    assert (response.status_code, "early-layers or draft" in response.text) == (400, True)


def _common(one, other):
    return next(at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
