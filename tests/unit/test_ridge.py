"""Ridge regression from sums: against NumPy's least squares, in pieces and at once."""

import numpy as np
import torch

from specprefill_sgl.methods.kv_prediction.ridge import Sums


def _drawn(tokens, seed):
    draw = torch.Generator().manual_seed(seed)
    features = 2 * torch.randn(tokens, 7, generator=draw) + 1
    maps = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    return features, features @ maps.T + 3 + 0.5 * torch.randn(tokens, 5, generator=draw)


def _sums(tokens, seed, pieces):
    sums = Sums(7, 5, torch.device("cpu"))
    features, numbers = _drawn(tokens, seed)
    for one, other in zip(features.chunk(pieces), numbers.chunk(pieces), strict=True):
        sums.add(one, other)
    return sums, features.double(), numbers.double()


def test_without_a_penalty_it_is_least_squares():
    sums, features, numbers = _sums(400, 1, 3)
    weight, bias = sums.solve(0.0)
    inputs = np.hstack([features, np.ones((400, 1))])
    wanted = np.linalg.lstsq(inputs, numbers.numpy(), rcond=None)[0]
    np.testing.assert_allclose(torch.cat([weight.T, bias[None]]), wanted, atol=1e-9)


def test_a_penalty_shrinks_weights_but_not_the_mean():
    sums, features, numbers = _sums(400, 1, 1)
    weight, bias = sums.solve(1e6)
    assert weight.abs().max() < 1e-4
    torch.testing.assert_close((features @ weight.T + bias).mean(0), numbers.mean(0))


def test_r2_of_tokens_that_it_was_not_fitted_on():
    weight, bias = _sums(400, 1, 2)[0].solve(1e-6)
    held_out, features, numbers = _sums(100, 2, 4)
    left = (numbers - features @ weight.T - bias).square()
    total = (numbers - numbers.mean(0)).square()
    for part in (slice(0, 5), slice(0, 2), slice(2, 5)):
        wanted = 1 - left[:, part].sum() / total[:, part].sum()
        assert abs(held_out.explained(weight, bias, part) - wanted) < 1e-9
        assert 0.5 < wanted < 0.999
