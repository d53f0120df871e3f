"""SGLang's engine, without a server: `python examples/engine.py --target TARGET --draft DRAFT --document FILE`."""

import argparse
import json
import os
from pathlib import Path

import sglang

if __name__ == "__main__":  # the engine starts processes, which import this file
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--document", type=Path, default=Path(__file__).parents[1] / "README.md")
    parser.add_argument("--options", type=json.loads, default={}, help="more of sglang.Engine's, as JSON")
    asked = parser.parse_args()
    os.environ["SGLANG_SPEC_PREFILL_CONFIG"] = json.dumps({"draft_model_path": asked.draft, "keep_ratio": 0.2})
    engine = sglang.Engine(model_path=asked.target, **asked.options)
    prompt = asked.document.read_text(encoding="utf-8") + "\n\nIn one sentence: what is this text about?"
    reply = engine.generate(prompt, {"temperature": 0, "max_new_tokens": 32})
    print(reply["text"], reply["meta_info"]["spec_prefill"])
    engine.shutdown()
