"""`sglang.Engine` takes its configuration from the environment; a draft that ends early votes with fewer queries."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from specprefill_sgl.config import ENVIRONMENT_VARIABLE
from tests.support import reference
from tests.support.tiny_models import prompt_ids

PROGRAM = """
import json, sys
import sglang

if __name__ == "__main__":
    engine = sglang.Engine(
        model_path=sys.argv[1], device="cpu", attention_backend="torch_native", dtype="float32",
        max_total_tokens=20000, mem_fraction_static=0.2, chunked_prefill_size=512,
    )
    params = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    asked = {"spec_prefill_return_positions": True}
    reply = engine.generate(input_ids=json.loads(sys.argv[2]), sampling_params={**params, "custom_params": asked})
    try:
        engine.generate(prompt="x", sampling_params={**params, "custom_params": {"spec_prefill_keep_ratio": 2}})
        refused = None
    except ValueError as error:
        refused = str(error)
    print("RESULT " + json.dumps([reply, refused]), flush=True)
    engine.shutdown()
"""


ENDS = list(range(0, 512, 3))  # a third of the vocabulary ends the draft's lookahead


@pytest.fixture
def draft_that_ends(pair_of, tmp_path):
    copy = tmp_path / "draft"
    shutil.copytree(pair_of("llama")[1], copy)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps({**settings, "eos_token_id": ENDS}))
    return copy


def test_engine_equals_the_reference(pair_of, hugging_face, draft_that_ends, tmp_path):
    target, draft = pair_of("llama")[0], draft_that_ends
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps({"spec_prefill_draft_model_path": str(draft), "keep_ratio": 0.1, "min_tokens": 16, "selection": "paper"})
    )
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ids = prompt_ids(700, seed=8)  # its draft ends before the lookahead does
    done = subprocess.run(
        [sys.executable, program, target, json.dumps(ids)],
        env={**os.environ, ENVIRONMENT_VARIABLE: str(file)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    result = next((line[7:] for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    assert result is not None, done.stderr[-3000:]
    reply, refused = json.loads(result)
    importance = reference.draft_importance(hugging_face(draft), ids, eos_ids=ENDS)
    kept = reference.select_chunks(importance, keep_ratio=0.1)
    assert kept != reference.select_chunks(reference.draft_importance(hugging_face(draft), ids), keep_ratio=0.1)
    assert reply["meta_info"]["spec_prefill"]["positions"] == kept
    assert reply["output_ids"] == reference.greedy(hugging_face(target), ids, kept, len(ids), 8)[0]
    assert refused.startswith("spec_prefill_keep_ratio must be in (0, 1]")
