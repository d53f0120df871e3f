"""The CPU platform's Mamba2 scans equal the recurrence, token by token in float64."""

import pytest
import torch

from specprefill_sgl.platforms.torch_mamba2 import chunk_scan, state_update

HEADS, GROUPS, HEAD_DIM, STATE, CHUNK = 4, 2, 8, 16, 32
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture
def layer() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"A": -torch.rand(HEADS) * 4 - 0.1, "D": torch.randn(HEADS), "dt_bias": torch.randn(HEADS) - 2}


def tokens(count: int, seed: int) -> dict[str, torch.Tensor]:
    """What one sequence feeds a layer; leading dimension `count`."""
    torch.manual_seed(seed)
    return {
        "x": torch.randn(count, HEADS, HEAD_DIM),
        "dt": torch.randn(count, HEADS),
        "B": torch.randn(count, GROUPS, STATE),
        "C": torch.randn(count, GROUPS, STATE),
    }


def recurrence(fed: dict, layer: dict, state: torch.Tensor | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Outputs [tokens, heads, head_dim] and the state before each token and after the last, float64."""
    x, dt, b, c = (fed[name].double() for name in ("x", "dt", "B", "C"))
    rate, skip, bias = (layer[name].double() for name in ("A", "D", "dt_bias"))
    states = [torch.zeros(HEADS, HEAD_DIM, STATE).double() if state is None else state.double()]
    out = torch.empty_like(x)
    for t in range(len(x)):
        now = torch.empty_like(states[-1])
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            step = torch.log1p(torch.exp(dt[t, head] + bias[head]))
            now[head] = states[-1][head] * torch.exp(step * rate[head]) + step * torch.outer(x[t, head], b[t, group])
            out[t, head] = now[head] @ c[t, group] + skip[head] * x[t, head]
        states.append(now)
    return out, states


def scan(sequences: list[dict], layer: dict, **options):
    """Pack the sequences and scan; returns outputs and what `chunk_scan` returns."""
    packed = {name: torch.cat([fed[name] for fed in sequences])[None] for name in ("x", "dt", "B", "C")}
    lengths = [len(fed["x"]) for fed in sequences]
    out = torch.full_like(packed["x"], float("nan"))
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    returned = chunk_scan(
        packed["x"],
        packed["dt"],
        layer["A"],
        packed["B"],
        packed["C"],
        chunk_size=CHUNK,
        D=layer["D"],
        z=None,
        dt_bias=layer["dt_bias"],
        cu_seqlens=starts,
        dt_softplus=True,
        out=out,
        state_dtype=torch.float32,
        return_varlen_states=True,
        **options,
    )
    return out[0], *returned


@pytest.mark.parametrize("continued", [False, True])
def test_sequences_of_a_batch(layer, continued):
    """Shorter than a chunk, a single token, and longer than two, from zero states or from given ones."""
    sequences = [tokens(count, seed) for seed, count in enumerate((20, 1, 75))]
    initial = torch.randn(3, HEADS, HEAD_DIM, STATE) if continued else None
    out, before, after, tracked = scan(sequences, layer, initial_states=initial)
    expected = [recurrence(fed, layer, initial[i] if continued else None) for i, fed in enumerate(sequences)]
    torch.testing.assert_close(out.double(), torch.cat([one for one, _ in expected]), **CLOSE)
    torch.testing.assert_close(after.double(), torch.stack([states[-1] for _, states in expected]), **CLOSE)
    assert tracked is None
    # the batch's tokens 0, 32 and 64 are token 0 of the first sequence and tokens 11 and 43 of the last
    grid = torch.stack([expected[0][1][0], expected[2][1][11], expected[2][1][43]])
    torch.testing.assert_close(before[0].double(), grid, **CLOSE)


def test_states_asked_for_off_the_grid(layer):
    """Inside of sequences, and at the start of one that goes on from a state."""
    sequences = [tokens(count, seed) for seed, count in enumerate((50, 70))]
    initial = torch.randn(2, HEADS, HEAD_DIM, STATE)
    asked = {"track_seq_idx": torch.tensor([0, 1, 1]), "track_end_locs": torch.tensor([40, 50, 114])}
    out, _, _, tracked = scan(sequences, layer, initial_states=initial, **asked)
    expected = [recurrence(fed, layer, initial[i]) for i, fed in enumerate(sequences)]
    torch.testing.assert_close(out.double(), torch.cat([one for one, _ in expected]), **CLOSE)
    states = torch.stack([expected[0][1][40], expected[1][1][0], expected[1][1][64]])
    torch.testing.assert_close(tracked[0].double(), states, **CLOSE)


@pytest.mark.parametrize("gated", [False, True])
def test_decode(layer, gated):
    """Two requests go on from their slots' states; others' slots stay as they are."""
    fed = tokens(2, seed=5)
    pool = torch.randn(5, HEADS, HEAD_DIM, STATE)
    slots, untouched, kept = torch.tensor([3, 1]), [0, 2, 4], pool.clone()
    z = torch.randn(2, HEADS, HEAD_DIM) if gated else None
    out = torch.full_like(fed["x"], float("nan"))
    state_update(
        pool,
        fed["x"],
        fed["dt"][..., None].expand(-1, -1, HEAD_DIM),
        layer["A"][:, None, None].expand(-1, HEAD_DIM, STATE),
        fed["B"],
        fed["C"],
        layer["D"][:, None].expand(-1, HEAD_DIM),
        z=z,
        dt_bias=layer["dt_bias"][:, None].expand(-1, HEAD_DIM),
        dt_softplus=True,
        state_batch_indices=slots,
        out=out,
    )
    for request, slot in enumerate(slots.tolist()):
        one = {name: values[request : request + 1] for name, values in fed.items()}
        expected, states = recurrence(one, layer, kept[slot])
        gate = 1.0 if z is None else z[request].double() / (1 + torch.exp(-z[request].double()))
        torch.testing.assert_close(out[request].double(), expected[0] * gate, **CLOSE)
        torch.testing.assert_close(pool[slot].double(), states[-1], **CLOSE)
    assert torch.equal(pool[untouched], kept[untouched])


def test_states_and_outputs_keep_their_dtype(layer):
    """bfloat16 models: states stay float32, and are computed as such."""
    half = {name: values.bfloat16() for name, values in tokens(40, seed=1).items()}
    out, _, after, _ = scan([half], layer)
    expected, states = recurrence(half, layer, None)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, atol=0.02, rtol=0.02)
    torch.testing.assert_close(after[0].double(), states[-1], **CLOSE)


def test_speculative_verification_is_refused(layer):
    with pytest.raises(NotImplementedError, match="speculative"):
        state_update(*[torch.zeros(1)] * 6, disable_state_update=True)
