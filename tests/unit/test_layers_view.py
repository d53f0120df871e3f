"""The first layers of a model: a view of the same weights, however the model says where its layers end."""

import pytest
import torch
from torch import nn

from specprefill_sgl.models.first_layers import first_layers

LAYERS = 3


class _Decoder(nn.Module):
    """Runs all layers that it has."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(LAYERS))

    def _end(self):
        return len(self.layers)

    def forward(self, x):
        for at in range(self._end()):
            x = self.layers[at](x)
        return x


class _UpToAttribute(_Decoder):
    """As SGLang's Llama."""

    def __init__(self):
        super().__init__()
        self.end_layer = LAYERS

    def _end(self):
        return self.end_layer


class _UpToProperty(_Decoder):
    """As SGLang's Qwen3.5."""

    def __init__(self):
        super().__init__()
        self._end_layer = LAYERS

    @property
    def end_layer(self):
        return self._end_layer

    def _end(self):
        return self.end_layer


class _Model(nn.Module):
    def __init__(self, name, decoder):
        super().__init__()
        setattr(self, name, decoder)
        self._name, self.head = name, nn.Linear(4, 2)

    def forward(self, x):
        return self.head(getattr(self, self._name)(x))


@pytest.mark.parametrize("decoder", [_Decoder, _UpToAttribute, _UpToProperty])
@pytest.mark.parametrize("name", ["model", "backbone"])
@torch.no_grad()
def test_a_view_ends_early_and_the_model_stays_whole(decoder, name):
    torch.manual_seed(0)
    model, x = _Model(name, decoder()), torch.randn(2, 4)
    layers, whole = getattr(model, name).layers, model(x)
    view = first_layers(model, 2)
    assert torch.equal(view(x), model.head(layers[1](layers[0](x))))
    assert torch.equal(model(x), whole)
    layers[0].weight.add_(1)  # the same weights, also after an update
    assert torch.equal(view(x), model.head(layers[1](layers[0](x))))


def test_layers_that_are_elsewhere():
    with pytest.raises(ValueError, match="the layers of _Model are not where they are looked for"):
        first_layers(_Model("stack", _Decoder()), 2)
