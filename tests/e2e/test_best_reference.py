"""The default selection, with all its settings, keeps the positions that an independent Hugging Face reference keeps."""

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest

from specprefill_sgl.calibration import heads_file
from tests.support import best_reference, reference
from tests.support.server import serve, sparse_options
from tests.support.tiny_models import EOS, prompt_ids

HEADS = ((0, 1), (1, 3), (1, 0))
LENGTHS = (33, 1023, 1040)  # the last one's window lies across two chunks of chunked prefill, were it not kept together
SETTINGS = [
    {},
    {"window": 40},
    {"window": 256, "window_votes": "turns", "over_votes": "mean"},
    {"window": 17, "chunk_size": 32, "pool_kernel": 5, "ignore_first": 0, "ignore_tail": False},
    {"keep_last": 100, "ignore_first": 30},
]


@pytest.fixture(scope="module", params=["all heads", "chosen heads", "chosen heads, no lookahead"])
def case(request, pair_of, tmp_path_factory):
    """A server, and what its rule is."""
    target, draft = pair_of("llama")
    folder, chosen = tmp_path_factory.mktemp("best"), None
    options: dict = {"selection": "best", "keep_min": 0.1, "backlog": 1}
    rule = dict(best_reference.RULE)
    if request.param != "all heads":
        heads_file.save(folder / "heads.json", draft, HEADS, {})
        options["heads"], chosen = folder / "heads.json", HEADS
        rule["window"] = 48
    if request.param == "chosen heads, no lookahead":
        options["lookahead"] = rule["lookahead"] = 1
    with serve(folder, target, *sparse_options(draft, **options)) as server:
        yield server, rule, chosen


@pytest.fixture(scope="module")
def votes_of(case, pair_of, hugging_face):
    model = hugging_face(pair_of("llama")[1])
    return functools.cache(
        lambda length, **how: reference.draft_votes(
            model, prompt_ids(length, seed=length), eos_ids=(EOS,), heads=case[2], **how
        )
    )


@pytest.mark.parametrize("keep_ratio", [0.05, 0.3])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("changed", SETTINGS, ids=str)
def test_same_positions_and_tokens(case, pair_of, hugging_face, votes_of, changed, length, keep_ratio):
    server, rule, _ = case
    server.flush()
    fields = {f"spec_prefill_{name}": value for name, value in changed.items()}
    custom = {"spec_prefill_keep_ratio": keep_ratio, "spec_prefill_return_positions": True, **fields}
    ids = prompt_ids(length, seed=length)
    reply = server.generate(ids, custom=custom)
    kept = best_reference.kept(votes_of, rule, changed, length, keep_ratio)
    tokens, _ = reference.greedy(hugging_face(pair_of("llama")[0]), ids, kept, length, 8)
    assert reply["meta_info"]["spec_prefill"]["positions"] == kept
    assert reply["output_ids"] == tokens


def test_tokens_that_vote_are_read_again_where_the_drafts_cache_has_their_keys(case):
    server, rule, _ = case
    server.flush()
    ids = prompt_ids(1023, seed=77)
    custom = {"spec_prefill_keep_ratio": 0.05, "spec_prefill_return_votes": True}
    fresh, again = (server.generate(ids, custom=custom)["meta_info"]["spec_prefill"] for _ in range(2))
    assert (fresh["draft_cached_tokens"], again["draft_cached_tokens"]) == (0, 1023 - max(rule["window"], 1))
    assert again["votes"]["positions"] == fresh["votes"]["positions"]
    for one, other in zip(again["votes"]["chunks"], fresh["votes"]["chunks"], strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_while_others_wait_less_is_kept(case):
    """Sixteen prompts at once, each longer than a draft forward: those that wait with another one keep less."""
    server, _, _ = case
    server.flush()
    custom = {"spec_prefill_keep_ratio": 0.3, "spec_prefill_keep_min": 0.1}
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda seed: server.generate(prompt_ids(1023, seed=seed), custom=custom), range(16)))
    found = [reply["meta_info"]["spec_prefill"] for reply in replies]
    fallen = [info for info in found if info["keep_ratio_reason"] == "backlog"]
    assert fallen
    assert {info["keep_ratio_used"] for info in fallen} <= {max(0.1, 0.3 * (8 // waiting) / 8) for waiting in range(2, 17)}
    assert all(info["keep_ratio_used"] == 0.3 for info in found if info["keep_ratio_reason"] == "request")
    for info in found:
        assert info["kept_tokens"] == pytest.approx(info["keep_ratio_used"] * 1023, abs=8)
