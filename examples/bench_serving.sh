#!/usr/bin/env bash
# Load on one server with --spec-prefill, dense and sparse by turns, with SGLang's own client.
# usage: examples/bench_serving.sh MODEL [URL] [INPUT_TOKENS] [REQUESTS] [REQUESTS_PER_SECOND]
# MODEL is the target's folder or name, for its tokenizer.
set -euo pipefail
model=$1 url=${2:-http://127.0.0.1:30000} tokens=${3:-4096} requests=${4:-32} rate=${5:-1}

for custom in '{"spec_prefill": false}' '{"spec_prefill_keep_ratio": 0.2}'; do
  echo "== $custom"
  # --flush-cache: the second run must not find the first one's prompts
  python -m sglang.benchmark.serving --backend sglang-oai --base-url "$url" --model "$model" --flush-cache \
    --dataset-name random-ids --random-input-len "$tokens" --random-output-len 16 --random-range-ratio 1 \
    --num-prompts "$requests" --request-rate "$rate" --output-file /dev/null --extra-request-body "{\"custom_params\": $custom}"
done
