"""Sparse requests are decoded speculatively, and answer what they answer without; kernels around it run in an interpreter."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import best_reference, reference, revival_reference
from tests.support.mixture import assert_same_mixture
from tests.support.server import serve, sparse_options
from tests.support.speculative import INTERPRETED, LostPositions, save_eagle3_head, save_eagle_head
from tests.support.tiny_models import EOS, prompt_ids

SPARSE, DENSE = {"spec_prefill_keep_ratio": 0.2}, {"spec_prefill": False}
LONG = {"max_new_tokens": 48}


def speculative(algorithm: str, *, steps: int = 3, topk: int = 1, tokens: int = 4, draft=None) -> list[str]:
    """SGLang's flags: branches of drafts, and how many of their tokens are verified at once."""
    path = [] if draft is None else ["--speculative-draft-model-path", str(draft)]
    shape = {"num-steps": steps, "eagle-topk": topk, "num-draft-tokens": tokens}
    words = [word for name, value in shape.items() for word in (f"--speculative-{name}", str(value))]
    return ["--speculative-algorithm", algorithm, *words, *path]


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return LostPositions(tmp_path_factory.mktemp("lost positions"))


@pytest.fixture(scope="module")
def accepting(pair_of, faults, tmp_path_factory):
    """The target is its own speculative draft, so that drafts are accepted; trees with two branches, prompts in chunks."""
    target, draft = pair_of("llama")
    options = [*speculative("STANDALONE", topk=2, tokens=6, draft=target), "--chunked-prefill-size", "128"]
    folder = tmp_path_factory.mktemp("accepting")
    with serve(folder, target, *sparse_options(draft), *options, env=INTERPRETED | faults.env) as server:
        yield server


def test_drafts_that_are_accepted_change_no_answer(accepting, mixture_of):
    assert_same_mixture(accepting, mixture_of("llama"))


def _accepted(server, custom: dict) -> tuple[list[int], float]:
    """The answer, and how many of its tokens each verification gave."""
    server.flush()
    reply = server.generate(prompt_ids(600, seed=31), custom=custom, params=LONG)
    assert reply["meta_info"]["spec_prefill"]["applied"] == custom.get("spec_prefill", True)
    return reply["output_ids"], reply["meta_info"]["spec_accept_length"]


def test_positions_lost_in_verification_change_the_answer(accepting, faults):
    right, _ = _accepted(accepting, SPARSE)
    dense, _ = _accepted(accepting, DENSE)
    faults.switch("verify")
    try:
        assert _accepted(accepting, SPARSE)[0] != right
        assert _accepted(accepting, DENSE)[0] == dense
    finally:
        faults.switch("verify", on=False)


def test_positions_lost_in_drafts_cost_acceptance_only(accepting, faults):
    right, accepted = _accepted(accepting, SPARSE)
    faults.switch("draft")
    try:
        answer, fewer = _accepted(accepting, SPARSE)
    finally:
        faults.switch("draft", on=False)
    assert answer == right
    assert accepted > 1.5
    assert fewer < accepted - 0.3


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["NGRAM", "STANDALONE", "EAGLE", "EAGLE3"])
def test_each_algorithm(pair_of, mixture_of, tmp_path_factory, algorithm):
    target, draft = pair_of("llama")
    folder = tmp_path_factory.mktemp(algorithm)
    options = {
        "NGRAM": lambda: ["--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", "8"],
        "STANDALONE": lambda: speculative("STANDALONE"),  # the draft that reads prompts
        "EAGLE": lambda: speculative("EAGLE", topk=2, tokens=5, draft=save_eagle_head(target, folder / "head")),
        "EAGLE3": lambda: speculative("EAGLE3", draft=save_eagle3_head(target, folder / "head")),
    }[algorithm]()
    chunks = ["--chunked-prefill-size", "128"]
    with serve(folder, target, *sparse_options(draft), *options, *chunks, env=INTERPRETED) as server:
        assert_same_mixture(server, mixture_of("llama"))
        shared = "the draft shares the weights of --speculative-draft-model-path" in server.log.read_text()
        assert shared == (algorithm == "STANDALONE")


@pytest.mark.slow
def test_attention_kernels_that_index_by_positions(pair_of, tmp_path_factory):
    """Triton's draft backend sums up positions where it means lengths; those of sparse requests are larger."""
    target, draft = pair_of("llama")
    folder, prompts = tmp_path_factory.mktemp("triton"), [prompt_ids(length, seed=length) for length in (40, 56, 72, 80)]

    def answers(server) -> tuple[list[list[int]], list[float]]:
        """Two at once, so that one's indices lie behind the other's; again from the cache; without Speculative Prefill."""
        jobs = [(ids, custom) for custom in (SPARSE, SPARSE, DENSE) for ids in prompts]
        with ThreadPoolExecutor(2) as pool:
            replies = list(pool.map(lambda job: server.generate(job[0], custom=job[1]), jobs))
        assert all(reply["meta_info"]["spec_prefill"]["applied"] for reply in replies[:8])
        return [reply["output_ids"] for reply in replies], [reply["meta_info"].get("spec_accept_length") for reply in replies]

    with serve(folder, target, *sparse_options(draft)) as server:
        wanted, _ = answers(server)
    options = [*speculative("STANDALONE", topk=2, tokens=5, draft=target), "--attention-backend", "triton"]
    with serve(folder, target, *sparse_options(draft), *options, env=INTERPRETED) as server:
        found, accepted = answers(server)
    assert found == wanted
    assert sum(accepted[:8]) > 1.5 * 8


@pytest.mark.slow
def test_dropped_tokens_return(pair_of, hugging_face, tmp_path_factory):
    """Requests go back to the queue after several tokens at once: revived, and answered on all tokens in the end."""
    paths = pair_of("llama")
    target, draft = map(hugging_face, paths)
    options = speculative("STANDALONE", draft=paths[0])
    sharp = {"selection": "best", "chunk_size": 4, "pool_kernel": 5}
    custom = {
        "spec_prefill_keep_ratio": 0.1,
        "spec_prefill_return_positions": True,
        **{f"spec_prefill_{name}": value for name, value in sharp.items()},
    }
    rule = {**revival_reference.BEST, **sharp}
    with serve(tmp_path_factory.mktemp("returning"), paths[0], *sparse_options(paths[1]), *options, env=INTERPRETED) as server:
        revived = 0
        for seed, length in enumerate((333, 700, 1023, 1200)):
            ids = prompt_ids(length, seed=seed)
            kept = best_reference.kept(
                lambda _n, ids=ids, **how: reference.draft_votes(draft, ids, eos_ids=(EOS,), **how),
                *(best_reference.RULE, sharp, length, 0.1),
            )
            server.flush()
            asked = {**custom, "spec_prefill_revive_every": 3, "spec_prefill_revive_chunks": 2}
            reply = server.generate(ids, custom=asked, params=LONG)
            info = reply["meta_info"]["spec_prefill"]
            prefills = revival_reference.prefills(
                *(draft, ids, reply["output_ids"], kept, rule, info["asked_after"]), keep_ratio=0.1, most=2
            )
            assert info["revived_after"] == [said for said, _ in prefills[1:]]
            assert reply["output_ids"] == reference.greedy_revived(target, ids, prefills, length, 48)
            revived += len(info["revived_after"])
            server.flush()
            reply = server.generate(ids, custom={**custom, "spec_prefill_backfill": "answer"}, params=LONG)
            switched = reply["meta_info"]["spec_prefill"]["backfilled"]
            wanted = reference.greedy_revived(target, ids, [(0, kept), (switched, list(range(length)))], length, 48)
            assert 0 < switched < 40
            assert reply["output_ids"] == wanted
            assert reply["meta_info"]["spec_accept_length"] > 1.5
        assert revived
