"""SGLang's own route: `python examples/generate.py --document FILE`."""

import requests
from document import arguments, show

asked = arguments(__doc__)
reply = requests.post(
    asked.url + "/generate",
    json={
        "text": asked.prompt,
        "sampling_params": {
            "temperature": 0,
            "max_new_tokens": asked.max_tokens,
            "custom_params": {"spec_prefill_keep_ratio": asked.keep_ratio},
        },
    },
    timeout=600,
)
reply.raise_for_status()
show(reply.json()["text"], reply.json()["meta_info"]["spec_prefill"])
