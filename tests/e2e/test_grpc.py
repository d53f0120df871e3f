"""SGLang's gRPC front end, which knows nothing of our fields: the scheduler reads them, and aborts requests with bad ones."""

import os
import subprocess

import grpc
import pytest
from smg_grpc_proto import sglang_scheduler_pb2 as messages
from smg_grpc_proto import sglang_scheduler_pb2_grpc as service

from benchmarks.launch import START_DEADLINE_S, end, free_port
from tests.support import reference
from tests.support.server import command, sparse_options
from tests.support.streams import until
from tests.support.tiny_models import EOS, prompt_ids

pytestmark = pytest.mark.slow

NEW = 12
KEEP = 0.2


@pytest.fixture(scope="module")
def case(pair_of, tmp_path_factory):
    """What asks the server, its log, its models."""
    target, draft = pair_of("llama")
    port, log = free_port(), tmp_path_factory.mktemp("grpc") / "server.log"
    words = [*command(target, *sparse_options(draft)), "--smg-grpc-mode", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--skip-server-warmup"]  # its ids are of larger vocabularies
    with log.open("w") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env={**os.environ}, start_new_session=True)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            ask = service.SglangSchedulerStub(channel)
            until(lambda: process.poll() is not None or _is_healthy(ask), START_DEADLINE_S)
            assert process.poll() is None, log.read_text()
            yield ask, log
    finally:
        end(process)


def _is_healthy(ask) -> bool:
    try:
        return ask.HealthCheck(messages.HealthCheckRequest(), timeout=30).healthy
    except grpc.RpcError:
        return False


def _generate(ask, name, ids, custom):
    params = messages.SamplingParams(max_new_tokens=NEW, ignore_eos=True, n=1)
    params.custom_params.update(custom)
    request = messages.GenerateRequest(
        request_id=name, tokenized=messages.TokenizedInput(input_ids=ids), sampling_params=params
    )
    return list(ask.Generate(request, timeout=120))[-1].complete


def test_sparse_requests_are_answered_like_the_reference(case, pair_of, hugging_face):
    """Whole numbers among the fields too, which protobuf sends as 64.0. The second time what was kept is cached."""
    target, draft = (hugging_face(path) for path in pair_of("llama"))
    ids = prompt_ids(700, seed=1)
    importance = reference.draft_importance(draft, ids, eos_ids=(EOS,))
    kept = reference.select_chunks(importance, keep_ratio=KEEP, protect=[(0, 64)])
    wanted, _ = reference.greedy(target, ids, kept, len(ids), NEW)
    custom = {"spec_prefill_keep_ratio": KEEP, "spec_prefill_protect": [0, 64], "spec_prefill_min_tokens": 16}
    for name in ("first", "second"):
        reply = _generate(case[0], name, ids, custom)
        assert list(reply.output_ids) == wanted
        assert reply.prompt_tokens == len(ids)
        assert reply.cached_tokens == (0 if name == "first" else len(kept) - 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("spec_prefill_keep_ratio", 2), ("spec_prefill_min_tokens", 0.5), ("spec_prefill_unknown", 1), ("spec_prefill", "yes")],
)
def test_bad_fields_end_their_request_only(case, field, value):
    with pytest.raises(grpc.RpcError) as error:
        _generate(case[0], f"bad {field}", prompt_ids(100, seed=2), {field: value})
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field in error.value.details()
    assert len(_generate(case[0], f"after {field}", prompt_ids(100, seed=2), {}).output_ids) == NEW


def test_the_log_says_what_is_missing(case):
    assert "--spec-prefill with --smg-grpc-mode: " in case[1].read_text()
