"""The reference itself: with every token kept it is what `transformers` generates."""

import pytest
import torch

from tests.support import reference
from tests.support.tiny_models import FAMILIES, prompt_ids


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_everything_kept_is_plain_generation(family, pair_of, hugging_face):
    from transformers import AutoModelForCausalLM

    target, _ = pair_of(family)
    ids = prompt_ids(300, seed=1)
    plain = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, attn_implementation="eager").eval()
    wanted = plain.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=8, eos_token_id=None)[0, 300:].tolist()
    assert reference.greedy(hugging_face(target), ids, range(300), 300, 8)[0] == wanted


def test_the_cap_of_gemma_matters(pair_of, hugging_face):
    model = hugging_face(pair_of("gemma2")[1])
    ids = prompt_ids(200, seed=1)
    capped = reference.draft_importance(model, ids)
    layers = [module for module in model.modules() if hasattr(module, "attn_logit_softcapping")]
    caps = [layer.attn_logit_softcapping for layer in layers]
    try:
        for layer in layers:
            layer.attn_logit_softcapping = None
        assert (reference.draft_importance(model, ids) - capped).abs().max() > 0.01
    finally:
        for layer, cap in zip(layers, caps, strict=True):
            layer.attn_logit_softcapping = cap
