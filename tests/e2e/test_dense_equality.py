"""keep_ratio 1, dense requests on a sparse server, and stock SGLang answer alike, to the last bit of the logprobs."""

import pytest

from tests.support import predictors
from tests.support.server import CONTROL, serve, sparse_options
from tests.support.tiny_models import prompt_ids

LENGTHS = (5, 33, 700, 1500)


@pytest.fixture(scope="module")
def stock_answers(pair_of, tmp_path_factory):
    """From stock SGLang on our platform, with the plugin off."""
    target, _ = pair_of("llama")
    with serve(tmp_path_factory.mktemp("control"), target, env=CONTROL) as server:
        answers = {length: _ask(server, length, None) for length in LENGTHS}
        assert "spec_prefill" not in answers[5]["meta_info"]
        return answers


METHODS = ["draft,lazy,kv-prediction", *(pytest.param(name, marks=pytest.mark.slow) for name in ("draft", "kv-prediction"))]


@pytest.fixture(scope="module", params=METHODS)
def server(request, pair_of, tmp_path_factory, stock_answers):
    target, draft = pair_of("llama")
    folder, methods = tmp_path_factory.mktemp("sparse"), request.param.split(",")
    options: dict[str, object] = {"method": request.param}
    if "lazy" in methods:
        options["layers"] = 2
    if "kv-prediction" in methods:
        options["predictor"] = predictors.save_random(folder / "predictor", target, 2)
    with serve(folder, target, *sparse_options(draft if "draft" in methods else None, **options)) as server:
        yield server


def _ask(server, length, custom):
    return server.generate(
        prompt_ids(length, seed=length),
        custom=custom,
        params={"max_new_tokens": 16},
        return_logprob=True,
        top_logprobs_num=3,
    )


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    ("custom", "applied", "reason"),
    [
        ({"spec_prefill": False}, False, "disabled_by_request"),
        ({"spec_prefill_keep_ratio": 1}, True, None),
        ({"spec_prefill_keep_ratio": 0.1, "spec_prefill_min_tokens": 5000}, False, "below_min_tokens"),
    ],
)
def test_equals_stock(server, stock_answers, length, custom, applied, reason):
    server.flush()
    got, wanted = _ask(server, length, custom), stock_answers[length]
    if length < 16 and applied:
        applied, reason = False, "below_min_tokens"
    info = got["meta_info"]["spec_prefill"]
    assert (info["applied"], info["reason"], info["kept_tokens"]) == (applied, reason, length)
    assert got["output_ids"] == wanted["output_ids"]
    for key in ("output_token_logprobs", "output_top_logprobs", "prompt_tokens", "cached_tokens"):
        assert got["meta_info"][key] == wanted["meta_info"][key], key
