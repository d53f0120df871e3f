"""HiCache: KV that was pushed out of the device comes back from host memory and from files, under the ids of what was kept."""

import itertools
from array import array

import pytest
from sglang.srt.mem_cache.cpp_utils.native_hash import get_native_hash

from tests.support.faults import plugin_on_path, serve_with_faults
from tests.support.mixture import assert_same_mixture
from tests.support.server import host_cache_options, serve, sparse_options
from tests.support.streams import until
from tests.support.tiny_models import prompt_ids

POOL = 14000  # device slots: two long prompts push out everything else
SPARSE = {"spec_prefill_keep_ratio": 0.3, "spec_prefill_return_positions": True}
DENSE = {"spec_prefill": False}
_seeds = itertools.count(7000)

_DEVICE_ONLY = """
def register():
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.radix_cache import RadixKey
    from specprefill_sgl.hooks import decisions

    def count(scheduler, ids, namespace):
        extra_key, cache_salt = namespace
        key = RadixKey(ids, extra_key, limit=len(ids) - 1, cache_salt=cache_salt)
        return scheduler.tree_cache.match_prefix(MatchPrefixParams(key=key)).device_prefix_len

    decisions.cached_tokens = count
"""


@pytest.fixture(scope="module")
def running(pair_of, tmp_path_factory):
    target, draft = pair_of("llama")
    with serve(tmp_path_factory.mktemp("host"), target, *_options(draft)) as server:
        yield server


@pytest.fixture
def server(running):
    running.flush()
    return running


def _ask(server, ids, custom=SPARSE):
    """Answer, kept positions, cached tokens by where they were."""
    reply = server.generate(ids, custom=custom, params={"max_new_tokens": 12})
    info = reply["meta_info"]
    assert info["spec_prefill"]["applied"]
    return reply["output_ids"], info["spec_prefill"]["positions"], info.get("cached_tokens_details") or {}


def _push_out(server):
    """What is cached leaves the device: others take all of its slots."""
    for _ in range(2):
        server.generate(prompt_ids(POOL // 2, seed=next(_seeds)), custom=DENSE, params={"max_new_tokens": 1})


def test_the_same_answers_as_without(running, mixture_of):
    """Though it is pushed out in between, all that first turns kept is there for the second."""
    assert_same_mixture(running, mixture_of("llama"), between=lambda: _push_out(running))


def test_sparse_prompts_and_undropped_prefixes_come_back_from_the_host(server):
    """What the prefix of another prompt left there is kept for free."""
    ids, system = prompt_ids(1200, seed=1), prompt_ids(640, seed=3)
    answer, kept, _ = _ask(server, ids)
    server.generate(system, custom=DENSE, params={"max_new_tokens": 1})
    _push_out(server)
    again, same, cached = _ask(server, ids)
    assert (again, same) == (answer, kept)
    assert (cached["device"], cached["host"]) == (0, len(kept) - 1)
    _, kept, cached = _ask(server, [*system, *prompt_ids(600, seed=4)])
    assert kept[: len(system)] == list(range(len(system)))
    assert (cached["device"], cached["host"]) == (0, len(system))
    assert len(kept) - len(system) <= 0.3 * 600 + 2 * 32


def _conversation(server, between):
    server.flush()
    ids, turns = prompt_ids(1200, seed=2), []
    for number in range(3):
        if number:
            between()
        answer, kept, cached = _ask(server, ids)
        turns.append((ids, answer, kept, cached))
        ids = [*ids, *answer, *prompt_ids(90, seed=20 + number)]
    return turns


def test_an_earlier_turn_comes_back_from_the_host(server):
    """The turns of a conversation that was pushed out in between are those of one that never was."""
    stayed = _conversation(server, lambda: None)
    returned = _conversation(server, lambda: _push_out(server))
    assert [turn[:3] for turn in returned] == [turn[:3] for turn in stayed]
    for (_, answer, kept, _), (_, _, _, here), (_, _, _, back) in zip(stayed, stayed[1:], returned[1:], strict=False):
        assert here["device"] == back["host"] == len(kept) + len(answer) - 1
        assert here["host"] == back["device"] == 0


def _options(draft, files=None):
    return [*sparse_options(draft), "--max-total-tokens", str(POOL), *host_cache_options(files)]


@pytest.mark.slow
def test_where_the_device_alone_is_counted_a_prefix_is_dropped(pair_of, tmp_path):
    """What `cached_tokens` counts of the host is what keeps it."""
    target, draft = pair_of("llama")
    env = plugin_on_path(tmp_path / "plugin", "device_only", _DEVICE_ONLY)
    with serve(tmp_path, target, *_options(draft), env=env) as server, pytest.raises(AssertionError):
        test_sparse_prompts_and_undropped_prefixes_come_back_from_the_host(server)


@pytest.mark.slow
def test_two_ranks(pair_of, mixture_of, tmp_path):
    """They agree in every iteration, by SGLang's own check."""
    target, draft = pair_of("llama")
    env = {"SGLANG_ENABLE_RANK_CONSENSUS_CHECKER": "1"}
    with serve(tmp_path, target, *_options(draft, "files"), "--tp", "2", env=env) as server:
        test_the_same_answers_as_without(server, mixture_of)
        server.flush()
        test_an_earlier_turn_comes_back_from_the_host(server)


def _can_hash() -> bool:
    """SGLang compiles what hashes the blocks in its storage, with OpenSSL's headers."""
    try:
        return bool(get_native_hash(array("q", [1]), None))
    except RuntimeError:
        return False


@pytest.fixture(scope="module")
def case(pair_of, tmp_path_factory):
    """A server with files behind its host memory, where they are, and its faults."""
    if not _can_hash():
        pytest.skip("SGLang cannot hash blocks here")
    target, draft = pair_of("llama")
    folder = tmp_path_factory.mktemp("storage")
    with serve_with_faults(folder, target, *sparse_options(draft), *host_cache_options("files"), retracting=False) as (
        server,
        faults,
    ):
        yield server, folder / "files", faults


@pytest.mark.slow
@pytest.mark.parametrize("undone", [False, True])
def test_after_a_flush_sparse_kv_is_fetched_from_files(case, undone):
    """It lies there under its coded ids. Looked for when a request arrives, as SGLang does, it is not found."""
    server, files, faults = case
    server.flush()
    before = len(list(files.iterdir()))
    ids = prompt_ids(1200, seed=5 + undone)
    answer, kept, _ = _ask(server, ids)
    until(lambda: len(list(files.iterdir())) >= before + len(kept))
    server.flush()
    if undone:
        faults.switch("prefetch_at_arrival")
    try:
        again, same, cached = _ask(server, ids)
    finally:
        faults.switch("prefetch_at_arrival", on=False)
    assert (again, same) == (answer, kept)
    assert cached.get("storage", 0) == (0 if undone else len(kept) - 1)
