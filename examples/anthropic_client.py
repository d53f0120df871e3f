"""The Anthropic client: `python examples/anthropic_client.py --document FILE`. Fields go into `extra_body`."""

import anthropic
from document import arguments, show

asked = arguments(__doc__)
client = anthropic.Anthropic(base_url=asked.url, api_key="none")
message = client.messages.create(
    model="any",
    messages=[{"role": "user", "content": asked.prompt}],
    max_tokens=asked.max_tokens,
    extra_body={"temperature": 0, "custom_params": {"spec_prefill_keep_ratio": asked.keep_ratio}},
)
show("".join(block.text for block in message.content if block.type == "text"), message.sglext["spec_prefill"])
