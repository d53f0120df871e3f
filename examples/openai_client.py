"""The OpenAI client: `python examples/openai_client.py --document FILE`. Fields go into `extra_body`."""

import openai
from document import arguments, show

asked = arguments(__doc__)
client = openai.OpenAI(base_url=asked.url + "/v1", api_key="none")
chat = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": asked.prompt}],
    temperature=0,
    max_tokens=asked.max_tokens,
    extra_body={"custom_params": {"spec_prefill_keep_ratio": asked.keep_ratio}, "return_meta_info": True},
)
show(chat.choices[0].message.content, chat.choices[0].meta_info["spec_prefill"])
print(f"usage counts the whole prompt: {chat.usage.prompt_tokens} tokens")
