"""The CPU platform's Kimi delta attention equals the delta rule, token by token in float64."""

import pytest
import torch

from specprefill_sgl.platforms.torch_kimi_delta import CHUNK, chunk_kda, packed_decode

HEADS, K, V, SLOTS = 3, 16, 8, 5
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
BOUNDS = pytest.mark.parametrize("lower_bound", [None, -5.0])


@pytest.fixture
def layer() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"A_log": torch.randn(1, 1, HEADS, 1), "dt_bias": torch.randn(HEADS * K) - 2}


def tokens(count: int, seed: int) -> dict[str, torch.Tensor]:
    """What one sequence feeds a layer; leading dimension `count`."""
    torch.manual_seed(seed)
    shapes = {"q": (HEADS, K), "k": (HEADS, K), "v": (HEADS, V), "g": (HEADS, K), "beta": (HEADS,)}
    return {name: torch.randn(count, *shape) for name, shape in shapes.items()}


def delta_rule(
    fed: dict, layer: dict, state: torch.Tensor, lower_bound: float | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Outputs [tokens, heads, V] and the state [heads, V, K] before each token and after the last, float64."""
    q, k, v, raw, beta = (fed[name].double() for name in ("q", "k", "v", "g", "beta"))
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    rate, bias = layer["A_log"].double().flatten().exp(), layer["dt_bias"].double().view(HEADS, K)
    states, out = [state.double()], torch.empty_like(v)
    for t in range(len(q)):
        now = states[-1].clone()
        for head in range(HEADS):
            shifted = raw[t, head] + bias[head]
            if lower_bound is None:
                decay = -rate[head] * torch.log1p(torch.exp(shifted))
            else:
                decay = lower_bound / (1 + torch.exp(-rate[head] * shifted))
            memory = now[head] * torch.exp(decay)
            error = (v[t, head] - memory @ k[t, head]) / (1 + torch.exp(-beta[t, head]))
            now[head] = memory + torch.outer(error, k[t, head])
            out[t, head] = now[head] @ (q[t, head] * K**-0.5)
        states.append(now)
    return out, states


@BOUNDS
def test_sequences_of_a_batch(layer, lower_bound):
    """A short one, a single token and one of several chunks, from their slots' states; the last is tracked inside."""
    sequences = [tokens(count, seed) for seed, count in enumerate((20, 1, 150))]
    packed = {name: torch.cat([fed[name] for fed in sequences])[None] for name in sequences[0]}
    pool = torch.randn(SLOTS, HEADS, V, K)
    kept, slots, tracked = pool.clone(), [3, 0, 4], torch.full((3, HEADS, V, K), float("nan"))
    out, between = chunk_kda(
        **packed,
        **layer,
        initial_state=pool,
        initial_state_indices=torch.tensor(slots, dtype=torch.int32),
        cu_seqlens=torch.tensor([0, 20, 21, 171], dtype=torch.int32),
        lower_bound=lower_bound,
        use_qk_l2norm_in_kernel=True,
        beta_is_raw=True,
        output_intermediate_states=True,
        track_state=tracked,
        track_chunk_idx=torch.tensor([0, -1, 2], dtype=torch.int32),
    )
    expected = [delta_rule(fed, layer, kept[slot], lower_bound) for fed, slot in zip(sequences, slots, strict=True)]
    torch.testing.assert_close(out[0].double(), torch.cat([one for one, _ in expected]), **CLOSE)
    torch.testing.assert_close(pool[slots].double(), torch.stack([states[-1] for _, states in expected]), **CLOSE)
    torch.testing.assert_close(tracked[0], kept[3], **CLOSE)
    torch.testing.assert_close(tracked[2].double(), expected[2][1][2 * CHUNK], **CLOSE)
    assert between is None
    assert torch.equal(pool[[1, 2]], kept[[1, 2]])


@BOUNDS
def test_decode(layer, lower_bound):
    """Two requests go on from their slots' states; others' slots stay as they are."""
    fed = tokens(2, seed=5)
    pool = torch.randn(SLOTS, HEADS, V, K)
    kept, slots = pool.clone(), [3, 1]
    out = torch.full((2, 1, HEADS, V), float("nan"))
    packed_decode(
        mixed_qkv=torch.cat([fed[name].flatten(1) for name in ("q", "k", "v")], dim=1),
        a=fed["g"].flatten(1),
        b=fed["beta"],
        A_log=layer["A_log"].flatten(),
        dt_bias=layer["dt_bias"],
        scale=K**-0.5,
        initial_state=pool,
        out=out,
        ssm_state_indices=torch.tensor(slots, dtype=torch.int32),
        use_qk_l2norm_in_kernel=True,
        lower_bound=lower_bound,
    )
    for request, slot in enumerate(slots):
        one = {name: values[request : request + 1] for name, values in fed.items()}
        expected, states = delta_rule(one, layer, kept[slot], lower_bound)
        torch.testing.assert_close(out[request].double(), expected, **CLOSE)
        torch.testing.assert_close(pool[slot].double(), states[-1], **CLOSE)
    assert torch.equal(pool[[0, 2, 4]], kept[[0, 2, 4]])
