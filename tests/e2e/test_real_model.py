"""A real chat model, downloaded, converted, verified, and served with itself as draft."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import real_model
from benchmarks.quality import tasks
from tests.support import reference
from tests.support.server import serve, sparse_options

pytestmark = pytest.mark.slow

LENGTH, KEEP_RATIO, NEW_TOKENS = 900, 0.3, 28
NEEDLES = (0, 2, 3)  # of needle 1 the model gets the last digit wrong with the whole prompt, so there is nothing to compare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Made anew in an empty cache: downloaded, converted, verified."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        try:
            return real_model.folder()
        except real_model.NoSuchPackageError as missing:
            pytest.skip(str(missing))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    with serve(tmp_path_factory.mktemp("server"), folder, *sparse_options(folder), "--max-total-tokens", "8000") as server:
        yield server


@pytest.mark.parametrize("number", NEEDLES)
def test_a_needle_is_found_sparse_as_it_is_dense(server, tokenizer, number):
    question, value = _needle(tokenizer, number)
    for sparse in (False, True):
        server.flush()
        text, info = _chat(server, question, sparse)
        assert value in text
        assert info["applied"] == sparse
        assert (info["kept_tokens"] < 0.4 * info["prompt_tokens"]) == sparse


def test_kept_positions_and_tokens_are_the_references(server, folder, tokenizer):
    """As for tiny models, with trained weights: positions, and tokens in float32."""
    question, value = _needle(tokenizer, NEEDLES[0])
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False)
    ids = tokenizer.encode(prompt)
    server.flush()
    custom = {"spec_prefill_keep_ratio": KEEP_RATIO, "spec_prefill_return_positions": True}
    reply = server.generate(ids, custom=custom, params={"max_new_tokens": NEW_TOKENS})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    importance = reference.draft_importance(model, ids, eos_ids=(tokenizer.eos_token_id,))
    kept = reference.select_chunks(importance, keep_ratio=KEEP_RATIO)
    assert reply["meta_info"]["spec_prefill"]["positions"] == kept
    tokens, _ = reference.greedy(model, ids, kept, len(ids), NEW_TOKENS)
    assert reply["output_ids"] == tokens
    assert value in tokenizer.decode(tokens)


def _needle(tokenizer, number: int) -> tuple[str, str]:
    """Prose with one pass key in it and a question in a user's words; the value asked for."""
    example = tasks.example("single_needle", LENGTH, number, lambda piece: len(tokenizer.encode(piece)))
    word = example.question.removeprefix("The pass key for ").removesuffix(" is")
    prose = example.prompt.removesuffix(example.question)
    return f"{prose}What is the pass key for {word}?", example.answer.strip()


def _chat(server, question: str, sparse: bool) -> tuple[str, dict]:
    """The reply to one message over the OpenAI chat route, and the reply object."""
    custom = {"spec_prefill_keep_ratio": KEEP_RATIO} if sparse else {"spec_prefill": False}
    body = {"model": "m", "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": NEW_TOKENS}
    response = server.post("/v1/chat/completions", {**body, "custom_params": custom, "return_meta_info": True})
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return choice["message"]["content"], choice["meta_info"]["spec_prefill"]
