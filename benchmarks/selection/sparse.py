"""What the true answer costs after some of the prompt: many selections of one prompt in few forwards."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.selection.examples import Example
from benchmarks.selection.reading import judged

_MOST_TOKENS = 1 << 15  # of one forward, padding included


@torch.no_grad()
def answers(model: Any, example: Example, selections: Sequence[np.ndarray]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of each selection: negative log-likelihood of the answer's tokens, and whether each is the likeliest.

    Parameters
    ----------
    model : PreTrainedModel
    example : Example
    selections : sequence of int64 [kept]
        Kept positions, ascending, the last prompt token's among them; they keep their rotary positions.
    """
    longest = max(map(len, selections), default=0) + len(example.answer)
    size = max(_MOST_TOKENS // longest, 1)
    for start in range(0, len(selections), size):
        yield from _forward(model, example, selections[start : start + size])


def _forward(model: Any, example: Example, selections: Sequence[np.ndarray]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    n, rows = len(example.ids), len(example.answer)
    longest = max(map(len, selections)) + rows - 1
    ids, positions, mask = (np.zeros((len(selections), longest), dtype=np.int64) for _ in range(3))
    prompt = np.asarray(example.ids)
    for row, kept in enumerate(selections):  # padded on the left: the answers stand below one another
        begin = longest - len(kept) - rows + 1
        ids[row, begin:] = [*prompt[kept], *example.answer[:-1]]
        positions[row, begin:] = [*kept, *range(n, n + rows - 1)]
        mask[row, begin:] = 1
    model.set_attn_implementation("sdpa")
    inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
    on_device = {name: torch.from_numpy(values).to(model.device) for name, values in inputs.items()}
    logits = model(**on_device, use_cache=False, logits_to_keep=rows).logits.float()
    for row in range(len(selections)):
        yield judged(logits[row], example.answer)
