"""SGLang's own features work on sparse requests, on every route."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.support.server import body_of, serve, sparse_options
from tests.support.tiny_models import prompt_ids

SPARSE = {"spec_prefill_keep_ratio": 0.2}
POSITIONS = {**SPARSE, "spec_prefill_return_positions": True}


@pytest.fixture(scope="module")
def server(pair_of, tmp_path_factory):
    target, draft = pair_of("llama")
    options = ["--enable-custom-logit-processor", "--enable-return-hidden-states"]
    sparse = sparse_options(draft, draft_max_tokens=2000)
    with serve(tmp_path_factory.mktemp("features"), target, *sparse, *options) as server:
        yield server


@pytest.fixture(scope="module")
def ids():
    return prompt_ids(800, seed=3)


@pytest.fixture(scope="module")
def text(pair_of, ids):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pair_of("llama")[0]).decode(ids)


@pytest.fixture(scope="module")
def plain(server, ids):
    reply = server.generate(ids, custom=POSITIONS, params={"max_new_tokens": 16}, return_logprob=True)
    assert reply["meta_info"]["spec_prefill"]["applied"]
    return reply


def _stream(server, body):
    with server.post("/generate", {**body, "stream": True}, stream=True) as response:
        assert response.status_code == 200
        lines = [line[6:] for line in response.iter_lines() if line.startswith(b"data: ")]
    assert lines[-1] == b"[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_streaming(server, ids, plain):
    chunks = _stream(server, body_of(ids, custom=POSITIONS, params={"max_new_tokens": 16}))
    assert len(chunks) > 1
    assert chunks[-1]["output_ids"] == plain["output_ids"]
    for chunk in chunks:
        assert chunk["meta_info"]["prompt_tokens"] == len(ids)
        assert chunk["meta_info"]["spec_prefill"]["kept_tokens"] == plain["meta_info"]["spec_prefill"]["kept_tokens"]
        assert ("positions" in chunk["meta_info"]["spec_prefill"]) == (chunk is chunks[-1])
    assert chunks[-1]["meta_info"]["spec_prefill"]["positions"] == plain["meta_info"]["spec_prefill"]["positions"]


def test_parallel_samples(server, ids, plain):
    replies = server.generate(ids, custom=SPARSE, params={"max_new_tokens": 16, "n": 3})
    assert len(replies) == 3
    for reply in replies:
        assert reply["output_ids"] == plain["output_ids"]
        assert reply["meta_info"]["prompt_tokens"] == len(ids)
        assert reply["meta_info"]["spec_prefill"]["applied"]


def test_stop_token_and_stop_string(server, ids, plain):
    stop = plain["output_ids"][5]
    first = plain["output_ids"].index(stop)
    reply = server.generate(ids, custom=SPARSE, params={"max_new_tokens": 16, "stop_token_ids": [stop], "ignore_eos": False})
    assert reply["output_ids"] == plain["output_ids"][: first + 1]
    piece = next(w for w in (plain["text"][i : i + 3] for i in range(4, len(plain["text"]) - 3)) if w.isascii())
    reply = server.generate(ids, custom=SPARSE, params={"max_new_tokens": 16, "stop": [piece]})
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": piece}
    assert plain["text"].startswith(reply["text"])


def test_json_schema(server, ids):
    """A constrained request waits for its grammar outside the queue and must still be drafted."""
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
    reply = server.generate(
        ids, custom=SPARSE, params={"json_schema": json.dumps(schema), "max_new_tokens": 64, "ignore_eos": False}
    )
    assert reply["meta_info"]["spec_prefill"]["applied"]
    prefix = "".join(reply["text"].split())
    assert '{"a":true}'.startswith(prefix) or '{"a":false}'.startswith(prefix)
    assert prefix


def test_penalties_change_the_answer_and_bias_is_obeyed(server, ids):
    longer = {"max_new_tokens": 64}
    wanted = server.generate(ids, custom=SPARSE, params=longer)["output_ids"]
    repeated = next(at for at, token in enumerate(wanted) if token in wanted[:at])
    reply = server.generate(ids, custom=SPARSE, params={**longer, "repetition_penalty": 2.0, "frequency_penalty": 2.0})
    assert reply["meta_info"]["spec_prefill"]["applied"]
    assert reply["output_ids"][:repeated] == wanted[:repeated]
    assert reply["output_ids"][repeated] != wanted[repeated]
    biased = server.generate(ids, custom=SPARSE, params={"max_new_tokens": 4, "logit_bias": {"77": 1000.0}})
    assert biased["output_ids"] == [77] * 4


def test_penalties_when_the_last_token_is_coded(server):
    """One token in the last chunk and the chunk before it dropped: SGLang's penalizers read the prompt's last id."""
    ids = prompt_ids(801, seed=11)
    asked = {"spec_prefill_keep_ratio": 0.05, "spec_prefill_return_positions": True}
    penalised = {"frequency_penalty": 1.5, "repetition_penalty": 1.5, "presence_penalty": 1.0}
    reply = server.generate(ids, custom=asked, params=penalised)
    positions = reply["meta_info"]["spec_prefill"]["positions"]
    assert positions[-1] == 800
    assert positions[-2] < 799
    assert reply["output_ids"][0] == server.generate(ids, custom=asked)["output_ids"][0]


def test_beam_search_beside_a_sparse_request(server, ids):
    """Beams add rows to the decode batch that have no request of their own."""
    params = {"max_new_tokens": 200}
    alone = server.generate(ids, custom=SPARSE, params=params)
    with ThreadPoolExecutor(2) as pool:
        sparse = pool.submit(server.generate, ids, custom=SPARSE, params=params)
        time.sleep(0.5)
        beam = pool.submit(server.generate, ids[:100], params={"beam_width": 2, "max_new_tokens": 20})
        assert beam.result()
        assert sparse.result()["output_ids"] == alone["output_ids"]


def test_output_logprobs_with_top_k(server, ids, plain):
    reply = server.generate(ids, custom=SPARSE, params={"max_new_tokens": 16}, return_logprob=True, top_logprobs_num=4)
    info = reply["meta_info"]
    assert info["spec_prefill"]["applied"]
    assert info["input_token_logprobs"] == []
    assert [entry[1] for entry in info["output_token_logprobs"]] == plain["output_ids"]
    for chosen, top in zip(info["output_token_logprobs"], info["output_top_logprobs"], strict=True):
        assert len(top) == 4
        assert top[0][:2] == chosen[:2]


@pytest.mark.parametrize(
    ("fields", "params", "reason"),
    [
        ({"return_logprob": True, "logprob_start_len": 0}, {}, "prompt_logprobs"),
        ({"return_logprob": True, "logprob_start_len": 799}, {}, "prompt_logprobs"),
        ({"return_hidden_states": True}, {}, "hidden_states"),
        ({"session_params": {"id": "s"}}, {}, "session"),
        ({"return_logprob": True, "token_ids_logprob": [5, 6]}, {"max_new_tokens": 0}, "embedding_or_score"),
        ({}, {"beam_width": 2}, "beam_search"),
    ],
)
def test_requests_that_cannot_be_sparse_are_dense_and_say_why(server, ids, fields, params, reason):
    if "session_params" in fields:
        opened = server.post("/open_session", {"capacity_of_str_len": 10000, "session_id": "s"})
        assert opened.status_code == 200, opened.text
    info = server.generate(ids, custom=SPARSE, params=params, **fields)["meta_info"]
    assert (info["spec_prefill"]["applied"], info["spec_prefill"]["reason"]) == (False, reason)
    assert info["spec_prefill"]["kept_tokens"] == info["prompt_tokens"] == len(ids)


@pytest.mark.parametrize(("length", "reason"), [(1990, None), (1995, "exceeds_draft_pool"), (8185, "exceeds_draft_context")])
def test_prompts_the_draft_cannot_hold_are_dense(server, length, reason):
    reply = server.generate(prompt_ids(length, seed=length), custom=SPARSE, params={"max_new_tokens": 1})
    assert reply["meta_info"]["spec_prefill"]["reason"] == reason
    assert reply["meta_info"]["spec_prefill"]["applied"] == (reason is None)


def test_custom_logit_processor_is_dense(server, ids):
    from sglang.srt.sampling.custom_logit_processor import DisallowedTokensLogitsProcessor

    reply = server.generate(
        ids, custom={**SPARSE, "token_ids": [5]}, custom_logit_processor=DisallowedTokensLogitsProcessor.to_str()
    )
    assert reply["meta_info"]["spec_prefill"]["reason"] == "custom_logit_processor"


def test_score_route_still_works(server, ids):
    response = server.post("/v1/score", {"query": ids[:200], "items": [[7, 8], [9]], "label_token_ids": [5, 6], "model": "m"})
    assert response.status_code == 200, response.text
    assert len(response.json()["scores"]) == 2


def test_openai_chat_and_completions(server, ids, text):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
    chat = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": text}],
        temperature=0,
        max_tokens=8,
        extra_body={"custom_params": SPARSE, "return_meta_info": True},
    )
    info = chat.choices[0].model_extra["meta_info"]["spec_prefill"]
    assert info["applied"]
    assert chat.usage.prompt_tokens == info["prompt_tokens"] > info["kept_tokens"]
    completion = client.completions.create(
        model="m", prompt=ids, temperature=0, max_tokens=8, extra_body={"custom_params": SPARSE, "ignore_eos": True}
    )
    assert completion.usage.prompt_tokens == len(ids)
    sparse = server.generate(ids, custom=SPARSE)
    assert completion.choices[0].text == sparse["text"]


def _reply_objects(server, path, body):
    """Of an OpenAI reply, and of the last chunks of the same request streamed; and the number of chunks without one."""
    whole = server.post(path, body)
    assert whole.status_code == 200, whole.text
    with server.post(path, {**body, "stream": True}, stream=True) as response:
        lines = [line[6:] for line in response.iter_lines() if line.startswith(b"data: {")]
    found = [chunk["sglext"]["spec_prefill"] for chunk in map(json.loads, lines) if "sglext" in chunk]
    return whole.json()["sglext"]["spec_prefill"], found, len(lines) - len(found)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_openai_replies_and_streams_end_with_the_reply_object(server, ids, text, path):
    prompt = {"prompt": ids} if path == "/v1/completions" else {"messages": [{"role": "user", "content": text}]}
    # where tokens come faster than they are read, a chunk carries several: so there are many more tokens than wanted chunks
    body = {"model": "m", **prompt, "max_tokens": 48, "ignore_eos": True, "temperature": 0, "custom_params": POSITIONS}
    reply, streamed, others = _reply_objects(server, path, body)
    assert reply["applied"]
    assert reply["kept_tokens"] == len(reply["positions"]) < reply["prompt_tokens"]
    assert [one["positions"] for one in streamed] == [reply["positions"]]
    assert others >= 5
    dense, _, _ = _reply_objects(server, path, {**body, "custom_params": {"spec_prefill": False}})
    assert dense["reason"] == "disabled_by_request"


def test_openai_samples_have_a_reply_object_each(server, ids):
    body = {"model": "m", "prompt": ids, "n": 2, "max_tokens": 3, "temperature": 0, "custom_params": SPARSE}
    replies, streamed, _ = _reply_objects(server, "/v1/completions", body)
    assert [one["applied"] for one in replies] == [one["applied"] for one in streamed] == [True, True]


def test_frontend_program(server, text):
    import sglang as sgl

    @sgl.function
    def ask(s, document):
        s += document
        s += sgl.gen("answer", max_tokens=8, temperature=0)

    backend = sgl.RuntimeEndpoint(server.url)
    state = ask.run(document=text, backend=backend)
    assert state["answer"]
    assert state.get_meta_info("answer")["spec_prefill"]["applied"]
