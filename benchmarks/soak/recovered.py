"""Answers whose prompt changed while they were written: what came before, and after the last change, is computed again.

Before the first change an answer is that of the same request without recovery. After the last one it must be what the model
says after the tokens that are kept then and the answer so far: SGLang's own dense request where all are there, else Hugging
Face's model with the kept positions, in float32.
"""

import functools
from typing import Any

import torch

from benchmarks import launch
from benchmarks.soak.clients import Asked, generate

_RECOVERY = ("spec_prefill_revive_every", "spec_prefill_backfill")


def changes(reply: dict) -> list[int]:
    """Output tokens after which the prompt changed."""
    info = reply["meta_info"]["spec_prefill"]
    exact = [] if info.get("backfilled") is None else [info["backfilled"]]
    return [*info.get("revived_after", ()), *exact]


def without_recovery(custom: dict) -> dict:
    """What was asked for, but nothing may come back: alone there would be more time for it than under load."""
    return {name: value for name, value in custom.items() if name not in _RECOVERY}


def wrong(url: str, asked: Asked) -> str:
    """What is wrong with such an answer, "" if nothing; the server is idle, its caches are empty."""
    said, info = asked.reply["output_ids"], asked.reply["meta_info"]["spec_prefill"]
    first, last = changes(asked.reply)[0], changes(asked.reply)[-1]
    alone = generate(url, asked.ids, without_recovery(asked.custom), first)
    kept, positions = alone["meta_info"]["spec_prefill"]["positions"], info["positions"]
    returned = set(positions) - set(kept)
    if [position for position in positions if position not in returned] != kept:
        return f"of {len(kept)} tokens that were kept some are not among {len(positions)} later"
    if len(returned) != info["revived_tokens"]:
        return f"{info['revived_tokens']} tokens returned, {len(returned)} are more than were kept"
    if alone["output_ids"] != said[:first]:
        return f"was answered {said[:first]}, then {alone['output_ids']}"
    if info.get("backfilled") is not None:
        launch.flush(url)
        tail = generate(url, [*asked.ids, *said[:last]], {"spec_prefill": False}, len(said) - last)["output_ids"]
    else:
        tail = continued(model(str(launch.TARGET)), asked.ids, positions, said[:last], len(said) - last)
    return "" if tail == said[last:] else f"went on {said[last:]} after {changes(asked.reply)}, then {tail}"


@functools.cache
def model(path: str) -> Any:
    """The target, as Hugging Face runs it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@torch.no_grad()
def continued(model: Any, ids: list[int], positions: list[int], said: list[int], tokens: int) -> list[int]:
    """Greedy tokens after some of a prompt, at its positions and in this order, and an answer so far."""
    fed, at = [*(ids[position] for position in positions), *said], [*positions, *range(len(ids), len(ids) + len(said))]
    found: list[int] = []
    cache, length = None, len(fed)
    while len(found) < tokens:
        inputs = {"input_ids": torch.tensor([fed]), "position_ids": torch.tensor([at])}
        mask = torch.ones(1, length + len(found), dtype=torch.long)  # else positions that fall would begin another sequence
        output = model(**inputs, attention_mask=mask, past_key_values=cache, use_cache=True)
        found.append(int(output.logits[0, -1].argmax()))
        cache, fed, at = output.past_key_values, found[-1:], [len(ids) + len(said) + len(found) - 1]
    return found
