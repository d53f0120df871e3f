#!/usr/bin/env bash
# The same with AIPerf, in an environment of its own: python -m venv perf && perf/bin/pip install aiperf==0.13.0. Writes to artifacts/
# usage: PATH=perf/bin:$PATH examples/aiperf.sh MODEL [URL] [INPUT_TOKENS] [REQUESTS] [CONCURRENCY]
set -euo pipefail
model=$1 url=${2:-http://127.0.0.1:30000} tokens=${3:-4096} requests=${4:-32} concurrency=${5:-2}

for custom in '{"spec_prefill": false}' '{"spec_prefill_keep_ratio": 0.2}'; do
  echo "== $custom"
  curl -fsS -X POST "$url/flush_cache"
  aiperf profile --model target --tokenizer "$model" --url "$url" --endpoint-type completions --streaming --ui simple \
    --synthetic-input-tokens-mean "$tokens" --output-tokens-mean 16 --request-count "$requests" --concurrency "$concurrency" \
    --extra-inputs "{\"custom_params\": $custom, \"ignore_eos\": true}"
done
