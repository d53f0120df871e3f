"""A draft with a tokenizer of its own chooses what an independent Hugging Face reference of it chooses (issue Readers, 4)."""

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.support import best_reference, other_tokenizer, reference, tiny_models
from tests.support.server import body_of, serve, sparse_options
from tests.support.workers import PATIENT, workers_of

CUSTOM = {"spec_prefill_keep_ratio": 0.2, "spec_prefill_return_positions": True}
PAD = 2  # special to the target, unknown to the draft
WORDS = {0: 60, 1: 900, 2: 420}  # of the prompts, by their seeds; the second is longer than a chunk


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    return other_tokenizer.save_draft(tmp_path_factory.mktemp("own") / "draft")


def _options(draft, **more):
    return sparse_options(draft, draft_tokenizer="own", selection="best", **more)


@pytest.fixture(scope="module")
def server(pair_of, draft, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with serve(folder, pair_of("llama")[0], *_options(draft), "--enable-metrics") as running:
        yield running


@pytest.fixture(scope="module")
def prompt():
    """Seed of a prompt -> the target's ids, the draft's, who overlaps whom."""
    return functools.cache(
        lambda seed: other_tokenizer.overlaps(tiny_models.tokenizer(), other_tokenizer.text(WORDS[seed], seed))
    )


@pytest.fixture(scope="module")
def votes_of(prompt, draft, hugging_face):
    """Votes over the target's tokens, from the draft's own."""

    def votes(seed, *, ignore_first=0, ignore_last=0, **how):
        ids, read, found = prompt(seed)
        counted = {"ignore_first": found[ignore_first][0] if ignore_first else 0}
        counted["ignore_last"] = len(read) - 1 - found[len(ids) - ignore_last - 1][-1]
        by_kind = reference.draft_votes(hugging_face(draft), read, eos_ids=(1,), **counted, **how)
        return {kind: other_tokenizer.over_target(one, found) for kind, one in by_kind.items()}

    return functools.cache(votes)


@pytest.fixture(scope="module")
def kept_of(prompt, votes_of):
    """Kept positions of a prompt by the default rule, changed as a request may."""

    def kept(seed, keep_ratio, changed):
        length = len(prompt(seed)[0])
        return best_reference.kept(lambda _, **how: votes_of(seed, **how), best_reference.RULE, changed, length, keep_ratio)

    return kept


@pytest.mark.parametrize("keep_ratio", [0.1, 0.3])
@pytest.mark.parametrize("changed", [{}, {"window": 17, "chunk_size": 32, "over_votes": "mean"}], ids=str)
@pytest.mark.parametrize("seed", WORDS)
def test_same_positions_and_tokens(server, pair_of, hugging_face, prompt, kept_of, seed, changed, keep_ratio):
    server.flush()
    ids, read, _ = prompt(seed)
    fields = {f"spec_prefill_{name}": value for name, value in changed.items()}
    reply = server.generate(ids, custom={**CUSTOM, **fields, "spec_prefill_keep_ratio": keep_ratio})
    kept = kept_of(seed, keep_ratio, changed)
    tokens, _ = reference.greedy(hugging_face(pair_of("llama")[0]), ids, kept, len(ids), 8)
    info = reply["meta_info"]["spec_prefill"]
    assert (info["reason"], info["draft_tokens"], info["prompt_tokens"]) == (None, len(read), len(ids))
    assert info["positions"] == kept
    assert reply["output_ids"] == tokens
    assert info["tokenize_ms"] > 0


def test_the_papers_rule_too(server, prompt, votes_of):
    server.flush()
    reply = server.generate(prompt(2)[0], custom={**CUSTOM, "spec_prefill_selection": "paper"})
    importance = votes_of(2, lookahead=8)["lookahead"].mean(dim=0)
    assert reply["meta_info"]["spec_prefill"]["positions"] == reference.select_chunks(importance, keep_ratio=0.2)


def test_everything_kept_is_dense(server, pair_of, hugging_face, prompt):
    ids = prompt(2)[0]
    wanted, _ = reference.greedy(hugging_face(pair_of("llama")[0]), ids, list(range(len(ids))), len(ids), 8)
    for custom in ({"spec_prefill": False}, {"spec_prefill_keep_ratio": 1}):
        assert server.generate(ids, custom=custom)["output_ids"] == wanted


def test_text_batches_streams_and_neighbours_get_the_same(server, prompt, kept_of):
    """Whatever way a prompt comes, and whoever is drafted beside it."""
    server.flush()
    texts = [other_tokenizer.text(WORDS[seed], seed) for seed in WORDS]
    sampling = body_of([], custom=CUSTOM)["sampling_params"]
    replies = server.post("/generate", {"text": texts, "sampling_params": sampling}).json()
    server.flush()
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(lambda seed: server.generate(prompt(seed)[0], custom=CUSTOM), [*WORDS, *WORDS]))
    for seed, reply in zip([*WORDS, *WORDS, *WORDS], [*replies, *again], strict=True):
        assert reply["meta_info"]["spec_prefill"]["positions"] == kept_of(seed, 0.2, {})


def test_tokens_that_are_no_text_are_kept_not_read(server):
    """As a chat template's are."""
    server.flush()
    target, draft = tiny_models.tokenizer(), other_tokenizer.tokenizer()
    parts = [other_tokenizer.text(150, seed) for seed in range(2)]
    ids = [PAD, *target.encode(parts[0]), PAD, PAD, *target.encode(parts[1]), PAD, *target.encode(" answer")]
    info = server.generate(ids, custom=CUSTOM)["meta_info"]["spec_prefill"]
    special = [at for at, one in enumerate(ids) if one == PAD]
    assert set(special) <= set(info["positions"])
    read = [draft.encode(part, add_special_tokens=False) for part in (*parts, " answer")]
    assert info["draft_tokens"] == 1 + sum(map(len, read))


def test_what_has_no_text_is_dense_and_says_why(server):
    reply = server.generate([PAD] * 40, custom=CUSTOM)
    info = reply["meta_info"]["spec_prefill"]
    assert (info["applied"], info["reason"]) == (False, "no_text_for_the_draft")


def test_a_prefix_is_read_once(server, prompt):
    server.flush()
    ids, read, _ = prompt(2)
    infos = [server.generate([*ids, *more], custom=CUSTOM)["meta_info"]["spec_prefill"] for more in ([300, 301], [310])]
    assert infos[0]["draft_cached_tokens"] == 0
    assert len(read) - 60 < infos[1]["draft_cached_tokens"] <= len(read)
    server.flush()
    state = server.state()["spec_prefill"]
    assert state["draft_available_tokens"] == state["draft_max_tokens"]


def test_votes_are_over_the_targets_tokens(server, prompt):
    server.flush()
    ids, _, _ = prompt(2)
    custom = {**CUSTOM, "spec_prefill_return_votes": True, "spec_prefill_window": 5}
    votes = server.generate(ids, custom=custom)["meta_info"]["spec_prefill"]["votes"]
    assert len(votes["chunks"][0]) == -(-len(ids) // 8)
    decoded = [token for token, position in zip(votes["tokens"], votes["positions"], strict=True) if position >= len(ids)]
    asked = [(token, at) for token, at in zip(votes["tokens"], votes["positions"], strict=True) if at < len(ids)]
    assert decoded == [-1] * 7
    assert len(asked) == 5 + 1  # the window, and the last token, which begins the lookahead
    assert all(ids[at] == token for token, at in asked)


def test_a_client_cannot_send_a_reading(server, prompt):
    response = server.post("/generate", body_of(prompt(0)[0], custom={"spec_prefill_reading": "x"}))
    assert (response.status_code, "spec_prefill_reading" in response.text) == (400, True)


def test_its_time_is_a_stage(server, prompt):
    server.flush()

    def count():
        lines = requests.get(server.url + "/metrics", timeout=60).text.splitlines()
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith("sglang:spec_prefill_stage_seconds_count") and 'stage="tokenize"' in line
        )

    before = count()
    server.generate(prompt(2)[0], custom=CUSTOM)
    server.generate(prompt(2)[0], custom={"spec_prefill": False})
    assert count() == before + 1


@pytest.mark.slow
def test_two_ranks_and_batch_tokenization(pair_of, draft, prompt, kept_of, tmp_path):
    with serve(tmp_path, pair_of("llama")[0], *_options(draft), "--tp", "2", "--enable-tokenizer-batch-encode") as server:
        texts = [other_tokenizer.text(WORDS[seed], seed) for seed in WORDS]
        sampling = body_of([], custom=CUSTOM)["sampling_params"]
        replies = server.post("/generate", {"text": texts, "sampling_params": sampling}).json()
        for seed, reply in zip(WORDS, replies, strict=True):
            assert reply["meta_info"]["spec_prefill"]["positions"] == kept_of(seed, 0.2, {})


@pytest.mark.slow
def test_each_of_two_tokenizer_workers(pair_of, draft, prompt, kept_of, tmp_path):
    with serve(tmp_path, pair_of("llama")[0], *_options(draft), "--tokenizer-worker-num", "2", env=PATIENT) as server:
        for worker in workers_of(server, 2):
            server.flush()
            for seed in WORDS:
                info = worker.post("/generate", body_of(prompt(seed)[0], custom=CUSTOM)).json()["meta_info"]["spec_prefill"]
                assert info["positions"] == kept_of(seed, 0.2, {})
                assert info["tokenize_ms"] > 0
