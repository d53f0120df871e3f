"""The CPU platform's gated delta rule equals transformers' token by token, in batches, pieces and any slots."""

import pytest
import torch
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

from specprefill_sgl.platforms import torch_gated_delta as ours

KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM, SLOTS = 2, 4, 8, 16, 6
LENGTHS = (130, 1, 64, 63, 65)
BASE = torch.tensor([4, 0, 5, 2, 1], dtype=torch.int32)  # slots of the sequences; 3 is nobody's


class Inputs:
    """Sequences of what the layer's projections give, before gating: q, k, v, a, b of each, [tokens, heads(, dim)]."""

    def __init__(self, lengths: tuple[int, ...] = LENGTHS):
        torch.manual_seed(0)
        self.A_log = torch.rand(VALUE_HEADS).log() - 2  # slow decay: the first tokens matter to the last
        self.dt_bias = torch.randn(VALUE_HEADS)
        key, value = (KEY_HEADS, KEY_DIM), (VALUE_HEADS, VALUE_DIM)
        shapes = (key, key, value, (VALUE_HEADS,), (VALUE_HEADS,))
        self.sequences = [tuple(torch.randn(n, *shape) for shape in shapes) for n in lengths]
        self.states = torch.randn(SLOTS, VALUE_HEADS, VALUE_DIM, KEY_DIM)

    def expected(self, i: int, tokens: slice, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs [tokens, value heads, value dim] and the state after them, as [value heads, value dim, key dim]."""
        q, k, v, a, b = (one[tokens] for one in self.sequences[i])
        decay = -self.A_log.exp() * torch.log1p(torch.exp(a + self.dt_bias))
        q, k = (one[:, torch.arange(VALUE_HEADS) // (VALUE_HEADS // KEY_HEADS)] for one in (q, k))
        batch = [one[None] for one in (q, k, v, decay, 1 / (1 + torch.exp(-b)))]
        before = None if state is None else state.transpose(-1, -2)[None].contiguous()
        out, after = torch_recurrent_gated_delta_rule(
            *batch, initial_state=before, output_final_state=True, use_qk_l2norm_in_kernel=True
        )
        return out[0], after[0].transpose(-1, -2)


def chunks(inputs: Inputs, states: torch.Tensor, pieces: list[tuple[int, slice]], **options):
    """One call of the chunk rule for pieces of sequences; returns each piece's outputs and all states before chunks."""
    parts = [[one[tokens] for one in inputs.sequences[i]] for i, tokens in pieces]
    q, k, v, a, b = (torch.cat(one) for one in zip(*parts, strict=True))
    g, beta = ours.fused_gdn_gating(inputs.A_log, a, b, inputs.dt_bias)
    lengths = [len(part[0]) for part in parts]
    out, _, h = ours.chunk_gated_delta_rule(
        q[None],
        k[None],
        v[None],
        g,
        beta,
        initial_state=states,
        initial_state_indices=BASE[[i for i, _ in pieces]],
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        use_qk_l2norm_in_kernel=True,
        **options,
    )
    return out[0].split(lengths), h[0]


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


def test_sequences_of_a_batch_go_on_from_their_slots():
    inputs = Inputs()
    states = inputs.states.clone()
    out, _ = chunks(inputs, states, [(i, slice(None)) for i in range(len(LENGTHS))])
    for i in range(len(LENGTHS)):
        expected, after = inputs.expected(i, slice(None), inputs.states[BASE[i]])
        close(out[i], expected)
        close(states[BASE[i]], after)
    assert (states[3] == inputs.states[3]).all()


def test_pieces_equal_the_whole():
    """Chunked prefill: three calls, cut where no grid is."""
    inputs = Inputs((130, 90))
    states = torch.zeros_like(inputs.states)
    first, _ = chunks(inputs, states, [(0, slice(0, 70)), (1, slice(0, 5))])
    second, _ = chunks(inputs, states, [(1, slice(5, 90)), (0, slice(70, 129))])
    third, _ = chunks(inputs, states, [(0, slice(129, 130))])
    for i, parts in enumerate([(first[0], second[1], third[0]), (first[1], second[0])]):
        expected, after = inputs.expected(i, slice(None), None)
        close(torch.cat(parts), expected)
        close(states[BASE[i]], after)


def test_states_are_those_before_each_64_tokens_of_each_sequence():
    """On every sequence's own grid, at the index SGLang computes for it: chunks of those before it, plus its own."""
    inputs = Inputs()
    _, h = chunks(inputs, inputs.states.clone(), [(i, slice(None)) for i in range(len(LENGTHS))])
    at = 0
    for i, length in enumerate(LENGTHS):
        for start in range(0, length, 64):
            before = inputs.states[BASE[i]]
            close(h[at], inputs.expected(i, slice(0, start), before)[1] if start else before)
            at += 1
    assert len(h) == at


def test_states_stay_where_no_update_is_wanted():
    inputs = Inputs()
    states = inputs.states.clone()
    chunks(inputs, states, [(0, slice(None))], inplace_update=False)
    assert (states == inputs.states).all()


@pytest.mark.parametrize("padding", [False, True])
def test_decodes(padding):
    """Packed projections of one token of each request; a slot of -1 is no request."""
    inputs = Inputs((3, 3, 3))
    states, slots = inputs.states.clone(), BASE[:3].clone()
    if padding:
        slots[1] = -1
    for step in range(3):
        q, k, v, a, b = (torch.stack([one[step] for one in each]) for each in zip(*inputs.sequences, strict=True))
        out = torch.full((3, 1, VALUE_HEADS, VALUE_DIM), 7.0)
        packed = torch.cat([one.flatten(1) for one in (q, k, v)], dim=1)
        ours.fused_recurrent_gated_delta_rule_packed_decode(
            packed,
            a,
            b,
            inputs.A_log,
            inputs.dt_bias,
            KEY_DIM**-0.5,
            states,
            out,
            slots,
            use_qk_l2norm_in_kernel=True,
        )
        for i in range(3):
            if slots[i] < 0:
                assert (out[i] == 0).all()
            else:
                expected, after = inputs.expected(i, slice(0, step + 1), inputs.states[BASE[i]])
                close(out[i, 0], expected[-1])
                close(states[slots[i]], after)
    used = slots[slots >= 0].tolist()
    others = [slot for slot in range(SLOTS) if slot not in used]
    assert (states[others] == inputs.states[others]).all()


def _projection(parts: list[str], **sizes: int) -> tuple[torch.Tensor, dict[str, list[int]]]:
    """Two tokens' projection with a number for each element, and which numbers each named part has in the first token."""
    at, of = 0, {}
    for part in parts:
        of.setdefault(part, []).extend(range(at, at + sizes[part]))
        at += sizes[part]
    return torch.arange(2 * at).view(2, at).float(), of


@pytest.mark.parametrize("interleaved", [True, False])
def test_projections_are_taken_apart(interleaved):
    """Contiguous: all q, all k, all v, all z. Interleaved: those of one key head and its value heads, then of the next."""
    heads, group = (KEY_HEADS, VALUE_HEADS // KEY_HEADS) if interleaved else (1, VALUE_HEADS)
    key = KEY_DIM if interleaved else KEY_HEADS * KEY_DIM
    value = group * VALUE_DIM
    qkvz, of = _projection(["q", "k", "v", "z"] * heads, q=key, k=key, v=value, z=value)
    ba, of_ba = _projection(["b", "a"] * heads, b=group, a=group)
    split = ours.fused_qkvzba_split_reshape_cat if interleaved else ours.fused_qkvzba_split_reshape_cat_contiguous
    mixed, z, b, a = split(qkvz, ba, KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM)
    assert z.shape == (2, VALUE_HEADS, VALUE_DIM)
    for token in range(2):
        assert (mixed[token] == qkvz[token, of["q"] + of["k"] + of["v"]]).all()
        assert (z[token].flatten() == qkvz[token, of["z"]]).all()
        assert (b[token] == ba[token, of_ba["b"]]).all()
        assert (a[token] == ba[token, of_ba["a"]]).all()
