"""Same kept positions and same tokens as an independent Hugging Face reference, in float32, for five model families."""

import functools
import json
import math
import shutil

import pytest

from tests.support import reference
from tests.support.server import serve, sparse_options
from tests.support.tiny_models import EOS, FAMILIES, prompt_ids

LENGTHS = (31, 32, 33, 1023, 4097)
KEEP_RATIOS = (0.05, 0.1, 0.3, 0.5, 1)
NEW_TOKENS = 8


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def server(family, pair_of, tmp_path_factory):
    target, draft = pair_of(family)
    with serve(tmp_path_factory.mktemp(family), target, *sparse_options(draft)) as server:
        yield server


@pytest.fixture(scope="module")
def importance_of(family, pair_of, hugging_face):
    model = hugging_face(pair_of(family)[1])

    @functools.cache
    def importance(length: int):
        return reference.draft_importance(model, prompt_ids(length, seed=length), eos_ids=(EOS,))

    return importance


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("keep_ratio", KEEP_RATIOS)
def test_same_positions_and_tokens(server, family, pair_of, hugging_face, importance_of, length, keep_ratio):
    server.flush()  # what an earlier request left undropped in the radix cache would be kept for free
    ids = prompt_ids(length, seed=length)
    reply = server.generate(
        ids,
        custom={"spec_prefill_keep_ratio": keep_ratio, "spec_prefill_return_positions": True},
        params={"max_new_tokens": NEW_TOKENS},
        return_logprob=True,
    )
    kept = reference.select_chunks(importance_of(length), keep_ratio=keep_ratio)
    tokens, logprobs = reference.greedy(hugging_face(pair_of(family)[0]), ids, kept, length, NEW_TOKENS)
    info = reply["meta_info"]["spec_prefill"]
    assert info["applied"]
    assert info["positions"] == kept
    assert info["kept_tokens"] == len(kept)
    assert info["prompt_tokens"] == reply["meta_info"]["prompt_tokens"] == length
    assert math.isclose(info["keep_ratio"], len(kept) / length)
    assert reply["output_ids"] == tokens
    assert [p[0] for p in reply["meta_info"]["output_token_logprobs"]] == pytest.approx(logprobs, abs=2e-3)


def test_spans_and_prompts_that_share_a_draft_forward(server, importance_of):
    """Protected spans and the end are kept and the rest is the reference's choice."""
    server.flush()
    length = 1023
    protect = [(100, 140), (500, 501)]
    reply = server.generate(
        prompt_ids(length, seed=length),
        custom={
            "spec_prefill_keep_ratio": 0.3,
            "spec_prefill_return_positions": True,
            "spec_prefill_keep_last": 100,
            "spec_prefill_protect": [offset for span in protect for offset in span],
        },
    )
    kept = reference.select_chunks(importance_of(length), keep_ratio=0.3, keep_last=100, protect=protect)
    assert reply["meta_info"]["spec_prefill"]["positions"] == kept


def test_a_windowed_target_keeps_its_window(pair_of, hugging_face, tmp_path):
    """As far as half of the budget holds it, unless the request says otherwise; the same prompt is then selected anew."""
    target, draft = pair_of("gemma2")
    target = shutil.copytree(target, tmp_path / "target")
    settings = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**settings, "sliding_window": 129}))
    length, keep_ratio = 1023, 0.5
    importance = reference.draft_importance(hugging_face(draft), prompt_ids(length, seed=length), eos_ids=(EOS,))
    with serve(tmp_path, target, *sparse_options(draft), "--disable-radix-cache") as server:
        asked = {128: {}, 0: {"spec_prefill_keep_last": 0}, 300: {"spec_prefill_keep_last": 300}}
        chosen = {last: reference.select_chunks(importance, keep_ratio=keep_ratio, keep_last=last) for last in asked}
        assert len({tuple(positions) for positions in chosen.values()}) == len(asked)
        for keep_last, fields in asked.items():
            custom = {"spec_prefill_keep_ratio": keep_ratio, "spec_prefill_return_positions": True, **fields}
            reply = server.generate(prompt_ids(length, seed=length), custom=custom)
            assert reply["meta_info"]["spec_prefill"]["positions"] == chosen[keep_last]
