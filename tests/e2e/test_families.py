"""Every attention family as target and draft: positions and tokens are Hugging Face's, fresh, cached, chunked, in turns, mixed.

Servers prefill in chunks of 256 tokens, so that prompts of 900 take several. Rows that stand for a family run always, the whole
matrix with `make test-all`.
"""

import functools

import pytest
import torch

from tests.support import reference
from tests.support.families import FAMILIES, delta, scan
from tests.support.matrix import KEEP_RATIO, Matrix, new_text
from tests.support.server import serve, sparse_options
from tests.support.tiny_models import prompt_ids

# (target, draft, more server flags)
REPRESENTATIVE = [
    ("qwen3_5", "qwen3_5", ""),
    ("mellum", "gpt_oss", ""),
    ("deepseek_v3", "deepseek_v3", ""),
    ("nemotron_h", "nemotron_h", ""),
]
NO_BUFFER = "--mamba-radix-cache-strategy no_buffer --disable-overlap-schedule"
FIRST = "first_layers"  # in place of a draft: the target's own first layers read
DEEPER = {"qwen3_moe": 9, "qwen3_5": 8, "qwen3_next": 8, "gpt_oss": 6}  # layers of targets whose first layers read
# so many read; see `reference.draft_votes` for those that vote
FIRST_LAYERS = {
    "qwen3_moe": (3, 8),  # of eight two vote
    "qwen3_5": (4, 5),  # the fourth alone sees the prompt; after it comes a linear one
    "qwen3_next": (5,),
    "gpt_oss": (2, 3),  # the third is windowed and votes on short prompts only
    "mellum": (3,),
    "gemma3": (3,),
    "gemma4": (3,),
    "mimo_v2_flash": (3,),
    "nemotron_h": (3,),
    "falcon_h1": (3,),
    "granite_hybrid": (3,),
    "kimi_linear": (3,),
    "deepseek_v3": (2,),
}
OTHERS = [
    *((target, FIRST, f"--spec-prefill-layers {count}") for target, counts in FIRST_LAYERS.items() for count in counts),
    ("qwen3_moe", "glm4_moe", ""),
    ("glm4_moe", "qwen3_moe", ""),
    ("minimax_m2", "qwen3_moe", ""),
    ("mixtral", "mixtral", ""),
    ("qwen3_5", "qwen3_moe", ""),
    ("qwen3_5", "qwen3_5", NO_BUFFER),
    ("qwen3_5", "qwen3_5", "--page-size 16"),
    ("qwen3_5", "qwen3_5", "--enable-mixed-chunk"),
    ("qwen3_moe", "qwen3_5", ""),
    ("qwen3_5", "qwen3_5", "--tp 2"),
    ("deepseek_v3", "deepseek_v3", "--tp 2"),
    ("gemma4", "gemma4", ""),
    ("qwen3_5_vl", "qwen3_5_vl", ""),
    ("qwen3_5_moe", "qwen3_5_moe", ""),
    ("qwen3_next", "qwen3_next", ""),
    ("gpt_oss", "mellum", ""),
    ("gemma3", "gemma3", ""),
    ("mimo_v2_flash", "mellum", ""),
    ("deepseek_v2", "glm4_moe_lite", ""),
    ("glm4_moe_lite", "deepseek_v2", ""),
    ("falcon_h1", "falcon_h1", ""),
    ("granite_hybrid", "granite_hybrid", ""),
    ("nemotron_h", "qwen3_moe", NO_BUFFER),
    ("qwen3_moe", "nemotron_h", ""),
    ("kimi_linear", "kimi_linear", ""),
]
ROWS = [
    *(pytest.param(row, id="-".join(row).rstrip("-")) for row in REPRESENTATIVE),
    *(pytest.param(row, id="-".join(row).rstrip("-"), marks=pytest.mark.slow) for row in OTHERS),
]
LENGTHS = (100, 300, 900)
POOL = 5000  # slots of the target: 60 mixed requests evict each other
SMALL = ["--chunked-prefill-size", "256", "--max-running-requests", "8", "--max-total-tokens", str(POOL)]
RETRACTIONS = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "20"}


@pytest.fixture(scope="module", params=ROWS)
def matrix(request, model_of, hugging_face, tmp_path_factory):
    target, draft, flags = request.param
    if draft == FIRST:
        folder = model_of(target, layers=DEEPER.get(target))
        yield from _first_layers(target, int(flags.split()[1]), folder, hugging_face, tmp_path_factory)
        return
    folders = model_of(target), model_of(draft, seed=8)
    options = [*sparse_options(folders[1], keep_last=0), *SMALL, *FAMILIES[target].options, *flags.split()]
    env = {**FAMILIES[draft].env, **FAMILIES[target].env, **RETRACTIONS}
    with serve(tmp_path_factory.mktemp(target), folders[0], *options, env=env) as server:
        has_draft_cache = not ("--page-size" in flags and draft in (*delta.FAMILIES, *scan.FAMILIES))
        yield Matrix(server, *map(hugging_face, folders), tolerance=FAMILIES[target].tolerance, has_draft_cache=has_draft_cache)


def _first_layers(target, layers, folder, hugging_face, tmp_path_factory):
    options = [*sparse_options(None, keep_last=0, method="early-layers", layers=layers), *SMALL, *FAMILIES[target].options]
    model = hugging_face(folder)
    importance = functools.partial(reference.early_importance, model, layers=layers)
    with serve(tmp_path_factory.mktemp(target), folder, *options, env={**FAMILIES[target].env, **RETRACTIONS}) as server:
        yield Matrix(server, model, None, tolerance=FAMILIES[target].tolerance, importance=importance)


@pytest.mark.parametrize("length", LENGTHS)
def test_fresh_cached_and_dense(matrix, length):
    matrix.server.flush()
    ids = prompt_ids(length, seed=length)
    first = matrix.sparse(ids)
    matrix.scores(first, ids)
    info = first["meta_info"]["spec_prefill"]  # the scores are right to float noise, which may be what two chunks differ by
    importance = torch.tensor(info["scores"], dtype=torch.float64).repeat_interleave(32)[:length]
    assert info["positions"] == reference.select_chunks(importance, keep_ratio=KEEP_RATIO)
    again = matrix.sparse(ids)["meta_info"]["spec_prefill"]
    assert again["positions"] == info["positions"]
    assert again["draft_cached_tokens"] == length  # not drafted again
    matrix.dense(ids)
    longer = matrix.sparse(ids + prompt_ids(300, seed=length + 1))
    cached = longer["meta_info"]["cached_tokens"]  # undropped, from the dense request
    assert cached or length == 100  # the state of a hybrid may be kept at the ends of chunks only
    assert longer["meta_info"]["spec_prefill"]["positions"][:cached] == list(range(cached))


def test_scores_with_a_cached_prefix(matrix):
    """Another question to the same text: the draft reads its new tokens only, and its scores cover all."""
    matrix.server.flush()
    text = prompt_ids(500, seed=21)
    for number in (1, 2):
        ids = text + prompt_ids(90, seed=30 + number)
        reply = matrix.sparse(ids)
        matrix.scores(reply, ids)
        assert (reply["meta_info"]["spec_prefill"]["draft_cached_tokens"] > 0) == (number == 2 and matrix.has_draft_cache)


@pytest.mark.parametrize("first", ["sparse", "dense"])
def test_two_turns_keep_the_answer(matrix, first):
    """A long answer: 280 tokens, so that snapshots of recurrent states are taken while it is decoded."""
    matrix.server.flush()
    ids = prompt_ids(420, seed=50)
    reply = matrix.ask(ids, None if first == "sparse" else {"spec_prefill": False}, new_tokens=280)
    ids += new_text(reply, 300, seed=41)
    kept = set(matrix.sparse(ids)["meta_info"]["spec_prefill"]["positions"])
    # a dense turn is kept as the cache holds it: all but the last token, which was never fed back
    assert kept >= set(range(420, 700) if first == "sparse" else range(699))


def test_batch_of_mixed_requests(matrix):
    matrix.server.flush()
    for ids, custom, reply in matrix.mixed(8, seed=3):
        info = reply["meta_info"]["spec_prefill"]
        assert info["applied"] == ("spec_prefill" not in custom)
        matrix.answers(ids, info["positions"] if info["applied"] else range(len(ids)), reply)


def test_60_mixed_requests_evict_and_retract_each_other(matrix):
    """Slots and states of requests that are gone are used again; nothing of them is left, and nothing leaks."""
    matrix.server.flush()
    start = matrix.server.draft_pools()
    replies = matrix.mixed(60, seed=4)
    assert sum(reply["meta_info"]["num_retractions"] for _, _, reply in replies) > 0
    infos = [reply["meta_info"]["spec_prefill"] for _, _, reply in replies]
    assert [info["applied"] for info in infos] == ["spec_prefill" not in custom for _, custom, _ in replies]
    for (ids, _, reply), info in list(zip(replies, infos, strict=True))[::7]:
        matrix.answers(ids, info["positions"] if info["applied"] else range(len(ids)), reply)
    matrix.server.flush()
    assert matrix.server.load()["num_used_tokens"] == 0
    assert matrix.server.draft_pools() == start
    for length in (350, 500):
        ids = prompt_ids(length, seed=length + 7)
        matrix.scores(matrix.sparse(ids), ids)
