#!/usr/bin/env bash
# The same with GuideLLM, in an environment of its own: python -m venv guide && guide/bin/pip install guidellm==0.8.1
# usage: PATH=guide/bin:$PATH examples/guidellm.sh MODEL [URL] [INPUT_TOKENS] [REQUESTS] [STREAMS]
set -euo pipefail
model=$1 url=${2:-http://127.0.0.1:30000} tokens=${3:-4096} requests=${4:-32} streams=${5:-2}

for custom in '{"spec_prefill": false}' '{"spec_prefill_keep_ratio": 0.2}'; do
  echo "== $custom"
  curl -fsS -X POST "$url/flush_cache"
  extras="{\"body\": {\"custom_params\": $custom}}"
  guidellm run --disable-progress --output kind=console \
    --backend "{\"kind\": \"openai_http\", \"target\": \"$url\", \"request_format\": \"/v1/completions\", \"extras\": $extras}" \
    --tokenizer "kind=huggingface_auto,model=$model" --data "kind=synthetic_text,prompt_tokens=$tokens,output_tokens=16" \
    --profile "kind=concurrent,streams=$streams" --constraint "kind=max_requests,count=$requests"
done
