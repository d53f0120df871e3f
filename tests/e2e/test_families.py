"""Every attention family as target and draft: positions and tokens are Hugging Face's, fresh, cached, chunked, in turns, mixed.

Servers prefill in chunks of 256 tokens, so that prompts of 900 take several. Rows that stand for a family run always, the whole
matrix with `make test-all`.
"""

import pytest

from tests.support import reference
from tests.support.families import FAMILIES, hugging_face_model
from tests.support.matrix import KEEP_RATIO, Matrix, new_text
from tests.support.server import serve, sparse_options
from tests.support.tiny_models import prompt_ids

# (target, draft): names of families, or of a pair of tiny_models; more server flags
REPRESENTATIVE = [
    ("qwen3_5", "qwen3_5", ""),
]
OTHERS: list[tuple[str, str, str]] = []
ROWS = [
    *(pytest.param(row, id="-".join(row).rstrip("-")) for row in REPRESENTATIVE),
    *(pytest.param(row, id="-".join(row).rstrip("-"), marks=pytest.mark.slow) for row in OTHERS),
]
LENGTHS = (100, 300, 900)


@pytest.fixture(scope="module", params=ROWS)
def matrix(request, model_of, tmp_path_factory):
    target, draft, flags = request.param
    options, env = [*FAMILIES[target].options, *flags.split()], {**FAMILIES[draft].env, **FAMILIES[target].env}
    folders = model_of(target), model_of(draft, seed=8)
    sparse = sparse_options(folders[1], keep_last=0)
    small = ["--chunked-prefill-size", "256", "--max-running-requests", "8", "--max-total-tokens", "20000"]
    with serve(tmp_path_factory.mktemp(target), folders[0], *sparse, *small, *options, env=env) as server:
        models = [hugging_face_model(name, folder) for name, folder in zip((target, draft), folders, strict=True)]
        yield Matrix(server, *models, tolerance=FAMILIES[target].tolerance)


@pytest.mark.parametrize("length", LENGTHS)
def test_fresh_cached_and_dense(matrix, length):
    matrix.server.flush()
    ids = prompt_ids(length, seed=length)
    first = matrix.sparse(ids)
    matrix.scores(first, ids)
    importance = reference.draft_importance(matrix._draft, ids, eos_ids=(1,))
    assert first["meta_info"]["spec_prefill"]["positions"] == reference.select_chunks(importance, keep_ratio=KEEP_RATIO)
    again = matrix.sparse(ids)
    assert again["output_ids"] == first["output_ids"]
    matrix.dense(ids)
    matrix.sparse(ids, spec_prefill_keep_ratio=KEEP_RATIO * 0.9)  # what dense left undropped in the cache is kept


def test_scores_with_a_cached_prefix(matrix):
    """Another question to the same text: the draft reads its new tokens only, and its scores cover all."""
    matrix.server.flush()
    text = prompt_ids(500, seed=21)
    for number in (1, 2):
        ids = text + prompt_ids(90, seed=30 + number)
        matrix.scores(matrix.sparse(ids), ids)


@pytest.mark.parametrize("first", ["sparse", "dense"])
def test_two_turns_keep_the_answer(matrix, first):
    """A long answer: 280 tokens, so that snapshots of recurrent states are taken while it is decoded."""
    matrix.server.flush()
    ids = prompt_ids(420, seed=40)
    reply = matrix.ask(ids, None if first == "sparse" else {"spec_prefill": False}, new_tokens=280)
    ids += new_text(reply, 130, seed=41)
    info = matrix.sparse(ids)["meta_info"]["spec_prefill"]
    kept = set(info["positions"])
    assert kept >= set(range(420, 700))
    if first == "dense":
        assert kept >= set(range(700))


def test_batch_of_mixed_requests(matrix):
    matrix.server.flush()
    for ids, custom, reply in matrix.mixed(8, seed=3):
        info = reply["meta_info"]["spec_prefill"]
        assert info["applied"] == ("spec_prefill" not in custom)
        matrix.answers(ids, info["positions"] if info["applied"] else range(len(ids)), reply)


def test_after_30_mixed_requests(matrix):
    """Slots and states of requests that are gone are used again, and nothing of them is left."""
    matrix.mixed(30, seed=4)
    matrix.server.flush()
    for length in (350, 500):
        ids = prompt_ids(length, seed=length + 7)
        matrix.scores(matrix.sparse(ids), ids)
