"""The Triton kernels against the transcription in float64: in Triton's interpreter, or compiled where there is a GPU.

One bound holds for all dtypes: 16-bit inputs are exact in float32, and so are their products, so that only float32's own
rounding is left (on a GPU also the two bfloat16 halves of the attention when it is pooled, within 2^-17).
"""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specprefill_sgl.scoring import triton_scoring
from specprefill_sgl.scoring.packed import PackedPrompts, pack
from specprefill_sgl.scoring.triton_scoring import accumulate_votes
from tests.support.device import DEVICE
from tests.support.transcription import transcribed

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def packed_prompts(lengths, n_votes, visible=None, counted=None) -> tuple[PackedPrompts, int]:
    """Prompts over shuffled slots with gaps between them, and the slots of the buffer; without more all is seen and counts."""
    n_slots = sum(lengths) + 9
    slots = torch.randperm(n_slots)[: sum(lengths)].to(DEVICE)
    visible = [[n] * votes for n, votes in zip(lengths, n_votes, strict=True)] if visible is None else visible
    return pack(slots.split(lengths), visible, [(0, n) for n in lengths] if counted is None else counted), n_slots


def paged_keys(packed, n_slots, kv_heads, dim, dtype):
    """A key buffer that is NaN wherever no prompt is, between the heads' rows too."""
    buffer = torch.full((n_slots, kv_heads, dim + 8), float("nan"), dtype=dtype, device=DEVICE)
    buffer[packed.slots, :, :dim] = torch.randn(len(packed.slots), kv_heads, dim, device=DEVICE).to(dtype)
    return buffer[..., :dim]


def wanted(packed, queries, keys, *, scaling, logit_cap, pool_kernel, sinks=None, heads=None):
    """The transcription of each prompt on its own, float64 [votes, total_tokens]."""
    columns = []
    for prompt, (begin, end) in enumerate(packed.starts.unfold(0, 2, 1).tolist()):
        votes = torch.zeros(queries.shape[1], end - begin, dtype=torch.float64)
        visible = packed.visible[prompt].tolist()
        valid = [vote for vote, sees in enumerate(visible) if sees]
        votes[valid] = transcribed(
            *(queries[prompt, valid].cpu(), keys[packed.slots[begin:end]].cpu()), scaling, logit_cap, pool_kernel, sinks,
            visible=[visible[vote] for vote in valid], counted=packed.counted[prompt].tolist(), chosen=heads,
        )  # fmt: skip
        columns.append(votes)
    return torch.cat(columns, dim=1)


def check(
    lengths,
    *,
    heads=2,
    kv_heads=1,
    dim=16,
    votes=2,
    n_votes=None,
    dtype=torch.float32,
    pool_kernel=13,
    cap=0.0,
    layers=1,
    sinks=None,
    visible=None,
    counted=None,
    chosen=None,
):
    torch.manual_seed(sum(lengths) + heads + dim)
    n_votes = [votes] * len(lengths) if n_votes is None else n_votes
    if visible is None:
        visible = [[n] * valid + [0] * (votes - valid) for n, valid in zip(lengths, n_votes, strict=True)]
    packed, n_slots = packed_prompts(lengths, n_votes, visible, counted)
    votes = packed.visible.shape[1]
    got = torch.zeros(votes, sum(lengths), device=DEVICE)
    want = torch.zeros(votes, sum(lengths), dtype=torch.float64)
    settings = {"scaling": dim**-0.5, "logit_cap": cap, "pool_kernel": pool_kernel, "sinks": sinks, "heads": chosen}
    for _ in range(layers):
        queries = (2 * torch.randn(len(lengths), votes, heads, dim, device=DEVICE)).to(dtype)
        queries[packed.visible == 0] = float("nan")
        keys = paged_keys(packed, n_slots, kv_heads, dim, dtype)
        accumulate_votes(got, queries, keys, packed, **settings)
        layer = wanted(packed, queries, keys, **settings)
        want = torch.maximum(want, layer) if chosen is None else want + layer
    torch.testing.assert_close(got.cpu().double(), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(4, 4, 8), (6, 2, 16), (2, 1, 64), (7, 1, 80), (10, 2, 96), (2, 2, 128), (2, 1, 256)]
)
def test_heads_of_every_shape(heads, kv_heads, dim, dtype):
    check([20, 65], heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype)


@pytest.mark.parametrize("cap", [0.0, 5.0, 30.0])
@pytest.mark.parametrize("pool_kernel", [1, 5, 13, 31, 63])
def test_pooling_across_blocks(pool_kernel, cap):
    check([150, 7], pool_kernel=pool_kernel, cap=cap, votes=1)


@pytest.mark.parametrize("length", [1, 7, 63, 64, 65, 300])
def test_prompts_of_one_length(length):
    check([length, length])


def test_prompts_of_many_lengths_in_one_launch():
    check([64, 1, 300, 7, 65, 63], heads=4, kv_heads=2, votes=3, n_votes=[3, 1, 2, 0, 3, 3], dtype=torch.bfloat16)


@pytest.mark.parametrize("votes", [1, 2, 3, 5, 8, 15, 16, 33])
def test_numbers_of_votes_and_queries_that_do_not_vote(votes):
    check([40, 30], heads=6, kv_heads=2, votes=votes, n_votes=[votes, votes // 2])


@pytest.mark.parametrize("max_splits", [1, 2, 4])
def test_parts_of_many_blocks(max_splits, monkeypatch):
    monkeypatch.setattr(triton_scoring, "MAX_SPLITS", max_splits)
    check([300, 5, 130], dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize(("heads", "kv_heads", "votes", "cap"), [(6, 2, 3, 0.0), (7, 1, 2, 5.0), (2, 2, 8, 0.0)])
def test_sinks(heads, kv_heads, votes, cap, size, dtype):
    sinks = (size * torch.linspace(-1, 1, heads, device=DEVICE)).to(dtype)
    n_votes = [votes, 0, votes // 2]
    check([150, 5, 64], heads=heads, kv_heads=kv_heads, votes=votes, n_votes=n_votes, cap=cap, dtype=dtype, sinks=sinks)


@pytest.mark.parametrize("chosen", [None, [3], [3, 0]])
def test_layers_accumulate(chosen):
    check([70, 3], heads=4, kv_heads=2, layers=3, chosen=chosen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chosen", [None, [0], [5, 1, 2]])
def test_queries_do_not_see_their_future(chosen, dtype):
    """Of a prompt of three blocks: queries that see one token, a block, parts of the others, all; and some that do not vote."""
    visible = [[1, 64, 65, 130, 150, 0], [7, 0, 3], [0, 0, 64]]
    sinks = torch.linspace(-2, 2, 6, device=DEVICE)
    check([150, 7, 64], heads=6, kv_heads=2, visible=visible, chosen=chosen, dtype=dtype, sinks=sinks)


@pytest.mark.parametrize("pool_kernel", [1, 31])
@pytest.mark.parametrize("chosen", [None, [1, 2]])
def test_uncounted_tokens_receive_only_what_is_pooled_from_others(chosen, pool_kernel):
    counted = [(4, 140), (0, 0), (63, 64)]
    check([150, 7, 64], heads=4, kv_heads=2, counted=counted, chosen=chosen, pool_kernel=pool_kernel, cap=3.0)


@pytest.mark.parametrize("chosen", [None, [3]])
def test_more_votes_than_one_program_takes(chosen):
    visible = [[length - vote % 5 for vote in range(votes)] for length, votes in ((70, 66), (20, 3))]
    check([70, 20], heads=4, kv_heads=2, visible=visible, chosen=chosen, dim=8)


@settings(max_examples=20, derandomize=True)
@given(data=st.data())
def test_any_group(data):
    lengths = data.draw(st.lists(st.integers(1, 140), min_size=1, max_size=4))
    kv_heads, votes = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    check(
        lengths,
        heads=kv_heads * data.draw(st.integers(1, 4)),
        kv_heads=kv_heads,
        dim=data.draw(st.integers(1, 130)),
        votes=votes,
        n_votes=[data.draw(st.integers(0, votes)) for _ in lengths],
        dtype=data.draw(st.sampled_from(DTYPES)),
        pool_kernel=2 * data.draw(st.integers(0, 31)) + 1,
        cap=data.draw(st.sampled_from([0.0, 1.0, 50.0])),
    )


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_attention_that_is_not_finite_spoils_its_own_prompt_only(value):
    torch.manual_seed(0)
    packed, n_slots = packed_prompts([100, 90], [2, 1])
    keys = paged_keys(packed, n_slots, 2, 16, torch.float32)
    keys[packed.slots[5], 1] = value
    out = torch.zeros(2, 190, device=DEVICE)
    for _ in range(2):  # the second layer must not heal it
        accumulate_votes(out, torch.rand(2, 2, 4, 16, device=DEVICE), keys, packed, scaling=1.0, logit_cap=0.0, pool_kernel=13)
        keys = paged_keys(packed, n_slots, 2, 16, torch.float32)
    assert out[:, :100].isnan().all()
    assert out[:, 100:].isfinite().all()


def test_logits_far_beyond_the_cap_and_the_exponential():
    torch.manual_seed(0)
    packed, n_slots = packed_prompts([80], [2])
    queries, keys = 100 * torch.randn(1, 2, 2, 16, device=DEVICE), paged_keys(packed, n_slots, 1, 16, torch.float32)
    for cap, rtol in ((20.0, 1e-4), (0.0, 1e-3)):  # uncapped logits of thousands: their own rounding shows
        given = {"scaling": 1.0, "logit_cap": cap, "pool_kernel": 5}
        got = torch.zeros(2, 80, device=DEVICE)
        accumulate_votes(got, queries, keys, packed, **given)
        torch.testing.assert_close(got.cpu().double(), wanted(packed, queries, keys, **given), rtol=rtol, atol=1e-6)


def test_keys_more_than_32_bits_away():
    """The buffer is 4.3 GB of address space, of which two pages are touched."""
    torch.manual_seed(0)
    kv_heads, dim = 8, 128
    n_slots = 2**31 // (kv_heads * dim) + 4
    keys = torch.empty(n_slots, kv_heads, dim, dtype=torch.float16, device=DEVICE)
    slots = torch.tensor([n_slots - 1, 0, n_slots - 3], device=DEVICE)
    keys[slots] = torch.randn(3, kv_heads, dim, device=DEVICE).half()
    packed = pack([slots], [[3]], [(0, 3)])
    queries = torch.randn(1, 1, 8, dim, device=DEVICE).half()
    got = torch.zeros(1, 3, device=DEVICE)
    given = {"scaling": dim**-0.5, "logit_cap": 0.0, "pool_kernel": 3}
    accumulate_votes(got, queries, keys, packed, **given)
    torch.testing.assert_close(got.cpu().double(), wanted(packed, queries, keys, **given), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("pool_kernel", "dim", "heads", "said"),
    [(4, 8, 2, "pool_kernel 4"), (65, 8, 2, "pool_kernel 65"), (13, 257, 2, "257"), (13, 8, 3, "3 heads")],
)
def test_what_the_kernels_were_not_made_for(pool_kernel, dim, heads, said):
    packed = pack([torch.arange(5, device=DEVICE)], [[5]], [(0, 5)])
    queries, keys = torch.zeros(1, 1, heads, dim, device=DEVICE), torch.zeros(5, 2, dim, device=DEVICE)
    with pytest.raises(ValueError, match=said):
        accumulate_votes(
            torch.zeros(1, 5, device=DEVICE), queries, keys, packed, scaling=1.0, logit_cap=0.0, pool_kernel=pool_kernel
        )


def test_the_kernels_compile_for_an_h200_and_fit_its_shared_memory():
    """The interpreter takes what the compiler refuses. No GPU is needed to compile, but a process that does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.support.compile_kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    names, shared, registers, _ = zip(*(line.split() for line in done.stdout.splitlines()), strict=True)
    assert names == ("_partial_lse", "_pool") * 8
    assert max(map(int, shared)) <= 227 * 1024
    assert 0 < min(map(int, registers)) <= max(map(int, registers)) <= 255
