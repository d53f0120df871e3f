"""A next turn keeps what the turn before it kept, adds what it needs, and prefills only that."""

import itertools
import json

import pytest

from tests.support import reference
from tests.support.server import body_of, serve, sparse_options
from tests.support.tiny_models import prompt_ids

POOL = 9000  # so small that two prompts can push out everything else
SPARSE = {"spec_prefill_keep_ratio": 0.2, "spec_prefill_return_positions": True}


@pytest.fixture(scope="module")
def pair(pair_of):
    return pair_of("llama")


@pytest.fixture(scope="module")
def server(pair, tmp_path_factory):
    target, draft = pair
    with serve(tmp_path_factory.mktemp("server"), target, *sparse_options(draft), "--max-total-tokens", str(POOL)) as running:
        yield running


@pytest.fixture(scope="module")
def uncached(pair, tmp_path_factory):
    target, draft = pair
    with serve(tmp_path_factory.mktemp("uncached"), target, *sparse_options(draft), "--disable-radix-cache") as running:
        yield running


def _ask(server, ids, **params):
    reply = server.generate(ids, custom=SPARSE, params={"max_new_tokens": 12, **params})
    return reply["output_ids"], reply["meta_info"]["spec_prefill"], reply["meta_info"]["cached_tokens"]


@pytest.fixture(scope="module")
def conversation(server):
    """Three turns: (prompt, answer, reply object, cached tokens) each."""
    server.flush()
    turns, ids = [], prompt_ids(1600, seed=50)
    for number in range(3):
        answer, info, cached = _ask(server, ids)
        turns.append((ids, answer, info, cached))
        ids = ids + answer + prompt_ids(90, seed=60 + number)
    return turns


def test_a_turn_starts_with_the_coded_sequence_of_the_turn_before(conversation):
    for (before, answer, old, _), (ids, _, new, _) in itertools.pairwise(conversation):
        assert new["applied"]
        stays = old["positions"] + list(range(len(before), len(before) + len(answer)))
        assert new["positions"][: len(stays)] == stays
        added = new["positions"][len(stays) :]
        assert added == sorted(set(added) - set(stays))
        assert added[-1] == len(ids) - 1


def test_only_what_is_new_is_prefilled(conversation):
    """The last generated token of a turn was never fed back, so its KV is not in the cache."""
    for (before, answer, old, _), (_, _, _, cached) in itertools.pairwise(conversation):
        assert cached == len(old["positions"]) + len(answer) - 1
        assert cached > 0.2 * len(before) * 0.8


def test_old_chunks_that_the_new_turn_needs_come_back(conversation):
    """With random weights every turn wants other chunks; those before the answer are revived in their original positions."""
    revived = [
        position
        for (before, _, old, _), (_, _, new, _) in itertools.pairwise(conversation)
        for position in new["positions"][len(old["positions"]) :]
        if position < len(before)
    ]
    assert revived


def test_fresh_selection_is_contained(conversation, uncached):
    """Nothing a fresh selection would keep is lost because an earlier turn did not need it."""
    for ids, _, info, _ in conversation:
        uncached.flush()
        _, fresh, _ = _ask(uncached, ids)
        assert set(fresh["positions"]) <= set(info["positions"])


def test_answers_are_those_of_the_kept_tokens(conversation, pair, hugging_face):
    """To the token, against Hugging Face: the kept tokens in the order they were prefilled, at their original positions."""
    model = hugging_face(pair[0])
    for ids, answer, info, _ in conversation:
        tokens, _ = reference.greedy(model, ids, info["positions"], len(ids), len(answer))
        assert tokens == answer


def test_a_new_question_on_the_document_is_scored_afresh(server, uncached):
    document = prompt_ids(1300, seed=70)
    prompts = [document + prompt_ids(80, seed=seed) for seed in (71, 72)]
    server.flush()
    for ids in prompts:
        uncached.flush()
        _, fresh, _ = _ask(uncached, ids)
        _, info, _ = _ask(server, ids)
        run = next(at for at, position in enumerate([*fresh["positions"], -1]) if at != position)
        if run:  # an undropped prefix that both keep is shared
            assert set(fresh["positions"]) <= set(info["positions"])
        else:
            assert info["positions"] == fresh["positions"]


def test_what_the_cache_has_lost_is_selected_afresh(server, uncached):
    """Otherwise every turn after an eviction would prefill all that earlier turns ever kept."""
    server.flush()
    ids = prompt_ids(1600, seed=73)
    answer, _, _ = _ask(server, ids)
    for seed in (74, 75):
        server.generate(prompt_ids(POOL // 2 - 100, seed=seed), custom={"spec_prefill": False}, params={"max_new_tokens": 1})
    following = ids + answer + prompt_ids(90, seed=76)
    _, info, cached = _ask(server, following)
    uncached.flush()
    _ask(uncached, ids)
    _, alone, _ = _ask(uncached, following)
    assert cached == 0
    assert info["positions"] == sorted(info["positions"])
    assert info["positions"] == alone["positions"]


def test_an_answer_is_known_after_the_prompt_was_asked_again(server):
    server.flush()
    ids = prompt_ids(1100, seed=77)
    answer, info, _ = _ask(server, ids)
    _ask(server, ids, max_new_tokens=3)
    _, following, cached = _ask(server, ids + answer + prompt_ids(90, seed=78))
    assert following["positions"][: len(info["positions"])] == info["positions"]
    assert cached == len(info["positions"]) + len(answer) - 1


def test_an_undropped_prefix_is_better_than_what_an_earlier_turn_kept(server):
    server.flush()
    ids = prompt_ids(1100, seed=79)
    answer, _, _ = _ask(server, ids)
    server.generate(ids + answer, custom={"spec_prefill": False}, params={"max_new_tokens": 2})
    _, info, cached = _ask(server, ids + answer + prompt_ids(400, seed=81))
    assert info["positions"][: len(ids) + len(answer)] == list(range(len(ids) + len(answer)))
    assert cached >= len(ids) + len(answer)


@pytest.mark.parametrize("field", ["extra_key", "cache_salt"])
def test_salted_prefixes_are_not_shared(server, field):
    """SGLang's prefix caches are apart for requests with other keys; so are drafts and turns."""
    server.flush()
    ids = prompt_ids(1200, seed=82)

    def ask(prompt, key):
        reply = server.generate(prompt, custom=SPARSE, params={"max_new_tokens": 12}, **{field: key})
        return reply["output_ids"], reply["meta_info"]["spec_prefill"]

    answer, mine = ask(ids, "a")
    _, other = ask(ids, "b")
    assert (mine["draft_cached_tokens"], other["draft_cached_tokens"]) == (0, 0)
    assert other["draft_ms"] > 0
    following = ids + answer + prompt_ids(90, seed=83)
    _, stranger = ask(following, "c")
    _, next_turn = ask(following, "a")
    assert stranger["draft_cached_tokens"] == 0
    assert next_turn["draft_cached_tokens"] >= len(ids)
    assert next_turn["positions"][: len(mine["positions"])] == mine["positions"]
    assert stranger["positions"] == sorted(stranger["positions"])


def test_the_same_prompt_again_is_not_drafted(server):
    server.flush()
    ids = prompt_ids(1200, seed=80)
    answer, info, _ = _ask(server, ids)
    again, repeated, cached = _ask(server, ids)
    assert again == answer
    assert repeated["positions"] == info["positions"]
    assert repeated["draft_cached_tokens"] == len(ids)
    assert repeated["draft_ms"] == 0
    assert cached == len(info["positions"]) - 1


def test_an_aborted_turn_is_not_continued(server):
    server.flush()
    ids, chunks = prompt_ids(1000, seed=92), []
    body = body_of(ids, custom=SPARSE, params={"max_new_tokens": 3000}, rid="aborted-turn", stream=True)
    with server.post("/generate", body, stream=True) as response:
        for line in response.iter_lines():
            if line.startswith(b"data: {"):
                chunks.append(json.loads(line[len(b"data: ") :]))
                if len(chunks) == 3:
                    assert server.post("/abort_request", {"rid": "aborted-turn"}).status_code == 200
    assert chunks[-1]["meta_info"]["finish_reason"]["type"] == "abort"
    assert server.state()["spec_prefill"]["unanswered_turns"] == 0
    _, info, _ = _ask(server, ids + chunks[-1]["output_ids"] + prompt_ids(100, seed=93))
    assert info["applied"]
    assert info["positions"] == sorted(info["positions"])


def test_a_turn_without_an_answer_is_not_continued(server):
    """`max_new_tokens` 0 gives none."""
    server.flush()
    ids = prompt_ids(1000, seed=90)
    _ask(server, ids, max_new_tokens=0)
    _, info, _ = _ask(server, ids + prompt_ids(100, seed=91))
    assert info["applied"]
    assert info["positions"] == sorted(info["positions"])


def test_an_undropped_prefix_in_the_cache_is_kept_for_free(server):
    server.flush()
    system = prompt_ids(640, seed=95)
    server.generate(system, custom={"spec_prefill": False}, params={"max_new_tokens": 1})
    ids = system + prompt_ids(1000, seed=96)
    _, info, cached = _ask(server, ids)
    assert cached >= len(system)
    assert info["positions"][: len(system)] == list(range(len(system)))
    chosen = len(info["positions"]) - len(system)
    assert chosen <= 0.2 * (len(ids) - len(system)) + 2 * 32


def test_little_left_after_a_cached_prefix_is_dense(server):
    server.flush()
    document = prompt_ids(1000, seed=97)
    server.generate(document, custom={"spec_prefill": False}, params={"max_new_tokens": 1})
    ids = document + prompt_ids(50, seed=98)
    reply = server.generate(ids, custom={**SPARSE, "spec_prefill_min_tokens": 200})
    info = reply["meta_info"]["spec_prefill"]
    assert (info["applied"], info["reason"]) == (False, "prefix_cached")
    assert reply["meta_info"]["cached_tokens"] == len(document)
