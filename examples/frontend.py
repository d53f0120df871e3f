"""An SGLang frontend program: `python examples/frontend.py --document FILE`.

`sgl.gen` of SGLang 0.5.23 has no place for request fields: the server's own settings hold (`--spec-prefill-keep-ratio`).
"""

import sglang as sgl
from document import arguments, show

asked = arguments(__doc__)


@sgl.function
def answer(s, document, question):
    s += document + question
    s += sgl.gen("answer", max_tokens=asked.max_tokens, temperature=0)


state = answer.run(document=asked.document, question=asked.question, backend=sgl.RuntimeEndpoint(asked.url))
show(state["answer"], state.get_meta_info("answer")["spec_prefill"])
