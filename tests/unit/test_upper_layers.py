"""The selection bench's upper layers alone, against whole forwards of a small model."""

import numpy as np
import pytest
import torch

from benchmarks.selection import upper_layers
from benchmarks.selection.examples import Example
from benchmarks.selection.reading import judged

N, ANSWER, FIRST = 40, 5, 2
PROMPT, SAID = list(range(3, 3 + N)), [9, 8, 7, 6, 5]


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "vocab_size": 64}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, head_dim=8)).eval()


@pytest.fixture(scope="module")
def example():
    return Example("t", 0, N, "held_out", PROMPT, SAID, [True] * ANSWER, [], (0, 1))


@torch.no_grad()
def whole(model, per_layer=None):
    """One forward of everything; `per_layer` says which tokens the upper layers' queries do not see."""
    model.set_attn_implementation("sdpa")
    ids = torch.tensor([[*PROMPT, *SAID[:-1]]])
    handles = []
    if per_layer is not None:
        mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        mask[:, per_layer] = False

        def masked(_layer, args, kwargs):
            return args, {**kwargs, "attention_mask": mask[None, None]}

        handles = [layer.register_forward_pre_hook(masked, with_kwargs=True) for layer in model.model.layers[FIRST:]]
    logits = model(ids, use_cache=False).logits[0, N - 1 :]
    for handle in handles:
        handle.remove()
    return judged(logits.float(), SAID)


def test_all_kept_is_dense(model, example):
    below = upper_layers.entered(model, example, (FIRST,))[FIRST]
    nll, right = upper_layers.answer(model, example, below, np.arange(N))
    wanted, wanted_right = whole(model)
    torch.testing.assert_close(nll, wanted)
    assert torch.equal(right, wanted_right)


def test_dropped_tokens_are_unseen_above(model, example):
    kept = np.array([0, 3, 4, 17, 30, N - 1])
    below = upper_layers.entered(model, example, (FIRST,))[FIRST]
    nll, _ = upper_layers.answer(model, example, below, kept)
    wanted, _ = whole(model, np.setdiff1d(np.arange(N), kept))
    torch.testing.assert_close(nll, wanted)
    assert not torch.allclose(nll, whole(model)[0])


def test_true_keys_and_values_as_prediction_are_dense(model, example):
    """What only rotary positions, masks and the order of keys could break."""
    seen = {}
    handles = []
    for number, layer in enumerate(model.model.layers):
        for kind, module in (("key", layer.self_attn.k_proj), ("value", layer.self_attn.v_proj)):

            def keep(_module, _args, out, name=(kind, number)):
                seen[name] = out[0].unflatten(-1, (-1, 8))

            handles.append(module.register_forward_hook(keep))
    wanted, _ = whole(model)
    for handle in handles:
        handle.remove()

    class Truth:
        def predict(self, number, features):
            assert len(features) == len(others)
            return seen["key", number][others], seen["value", number][others]

    kept = np.array([0, 3, 4, 17, 30, N - 1])
    others = np.setdiff1d(np.arange(N), kept)
    below = upper_layers.entered(model, example, (FIRST,))[FIRST]
    nll, _ = upper_layers.answer(model, example, below, kept, Truth())
    torch.testing.assert_close(nll, wanted)
