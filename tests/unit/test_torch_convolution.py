"""The CPU platform's causal convolution equals a float64 sum written out."""

import pytest
import torch

from specprefill_sgl.platforms.torch_convolution import causal_conv1d_fn, causal_conv1d_update

CHANNELS, WIDTH, SLOTS = 6, 4, 5


def written_out(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """silu(sum over the last WIDTH tokens), float64; [channels, tokens] -> the same, with nothing before the first."""
    out = torch.zeros(tokens.shape, dtype=torch.float64)
    for channel in range(tokens.shape[0]):
        for at in range(tokens.shape[1]):
            total = 0.0 if bias is None else float(bias[channel])
            for back in range(min(WIDTH, at + 1)):
                total += float(tokens[channel, at - back]) * float(weight[channel, WIDTH - 1 - back])
            out[channel, at] = total / (1 + torch.exp(torch.tensor(-total, dtype=torch.float64)))
    return out


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def layer(request):
    torch.manual_seed(0)
    return torch.randn(CHANNELS, WIDTH), torch.randn(CHANNELS) if request.param else None


def test_sequences_in_pieces_equal_whole_sequences(layer):
    """Three sequences of one batch, then each goes on: in pieces shorter and longer than the window, then token by token."""
    weight, bias = layer
    whole = torch.randn(3, CHANNELS, 23)
    states = torch.full((SLOTS, CHANNELS, WIDTH - 1), 1e6)  # whatever an earlier request left
    slots = torch.tensor([3, 0, 4], dtype=torch.int32)
    done, pieces = [0, 0, 0], [[], [], []]
    for lengths in ([9, 1, 2], [1, 12, 2], [4, 2, 8]):
        x = torch.cat([whole[i, :, done[i] : done[i] + n] for i, n in enumerate(lengths)], dim=1)
        out = causal_conv1d_fn(
            x.T.contiguous().T,  # channels last, as SGLang passes it
            weight,
            bias,
            conv_states=states,
            query_start_loc=torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32),
            seq_lens_cpu=lengths,
            cache_indices=slots,
            has_initial_state=torch.tensor([n > 0 for n in done]),
        )
        for i, piece in enumerate(out.split(lengths, dim=1)):
            pieces[i].append(piece)
            done[i] += lengths[i]
    for _ in range(5):
        x = torch.stack([whole[i, :, done[i]] for i in range(3)])
        out = causal_conv1d_update(x, states, weight, bias, "silu", conv_state_indices=slots)
        for i in range(3):
            pieces[i].append(out[i][:, None])
            done[i] += 1
    for i in range(3):
        expected = written_out(whole[i, :, : done[i]], weight, bias)
        torch.testing.assert_close(torch.cat(pieces[i], dim=1).double(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(states[slots[i]], whole[i, :, done[i] - WIDTH + 1 : done[i]])
    assert (states[[1, 2]] == 1e6).all()  # nobody's slots


def test_several_tokens_in_one_update(layer):
    weight, bias = layer
    whole = torch.randn(2, CHANNELS, 11)
    states = torch.zeros(SLOTS, CHANNELS, WIDTH - 1)
    states[[2, 1]] = whole[:, :, 3:6]
    out = causal_conv1d_update(whole[:, :, 6:], states, weight, bias, "silu", conv_state_indices=torch.tensor([2, 1]))
    for i in range(2):
        expected = written_out(whole[i], weight, bias)[:, 6:]
        torch.testing.assert_close(out[i].double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states[[2, 1]], whole[:, :, -3:])


def test_padding_touches_no_slot(layer):
    weight, bias = layer
    states = torch.randn(SLOTS, CHANNELS, WIDTH - 1)
    before = states.clone()
    slots = torch.tensor([-1, 2], dtype=torch.int32)
    causal_conv1d_update(torch.randn(2, CHANNELS), states, weight, bias, "silu", conv_state_indices=slots)
    starts, known = torch.tensor([0, 3, 5]), torch.tensor([True, True])
    causal_conv1d_fn(torch.randn(CHANNELS, 7), weight, bias, states, starts, [3, 2], slots, known)
    changed = (states != before).flatten(1).any(dim=1)
    assert changed.tolist() == [False, False, True, False, False]


def test_sums_are_float32_whatever_tokens_are():
    """bfloat16 in and out; the error of one rounding, not of one for each product."""
    torch.manual_seed(0)
    weight, x = torch.randn(CHANNELS, WIDTH).bfloat16(), torch.randn(CHANNELS, 40).bfloat16()
    out = causal_conv1d_fn(x, weight, None, None, torch.tensor([0, 40]))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, written_out(x, weight, None).bfloat16(), atol=1e-7, rtol=2**-8)
