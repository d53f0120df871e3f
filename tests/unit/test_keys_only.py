"""What follows the last layer's keys is left out where only keys are wanted, in one view of a model, not in another."""

import pytest
import torch
from sglang.srt.model_executor.runner_utils.capture_mode import model_capture_mode
from torch import nn

from specprefill_sgl.models.first_layers import first_layers
from specprefill_sgl.models.keys_only import skip_what_follows

HIDDEN = 6


class _Projection(nn.Linear):
    """As SGLang's: with its bias apart."""

    output_size = HIDDEN

    def forward(self, states):
        return super().forward(states), None


class _Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.o_proj = _Projection(4, HIDDEN)

    def forward(self, states):
        return self.o_proj(states[:, :4])[0]


class _Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.mlp = _Attention(), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, states):
        states = states + self.self_attn(states)
        return states + self.mlp(states)


class _Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(_Layer() for _ in range(3))

    def forward(self, states):
        for layer in self.layers:
            states = layer(states)
        return states


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = _Decoder()

    def forward(self, states):
        return self.model(states)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return _Model()


@pytest.mark.parametrize("count", [2, 3])
@torch.no_grad()
def test_the_last_layer_of_the_view_passes_its_input_on(model, count):
    view, states, wanted = first_layers(model, count), torch.randn(5, HIDDEN), []
    skip_what_follows(view, lambda: bool(wanted))
    whole = first_layers(model, count)(states)
    assert torch.equal(view(states), whole)
    wanted.append(True)
    before = first_layers(model, count - 1)(states)
    assert torch.equal(view(states), before)  # nothing of the last layer but its keys, which this model has none of
    assert torch.equal(first_layers(model, count)(states), whole)  # the model itself is as it was
    with model_capture_mode():
        assert torch.equal(view(states), whole)  # a graph is for every forward


@torch.no_grad()
def test_weights_are_shared(model):
    view, states = first_layers(model, 2), torch.randn(5, HIDDEN)
    skip_what_follows(view, lambda: False)
    model.model.layers[1].mlp.weight.zero_()
    assert torch.equal(view(states), first_layers(model, 2)(states))


def test_quantized_rows_are_computed(model):
    """Their answer is not like them."""
    skip_what_follows(model, lambda: True)
    with pytest.raises(RuntimeError):  # of the linear layer itself
        model.model.layers[-1].mlp(torch.zeros(5, HIDDEN, dtype=torch.int8))


def test_a_model_whose_layers_are_elsewhere_is_left_alone():
    skip_what_follows(nn.Linear(2, 2), lambda: True)
