"""Step `kernels`: the Triton kernels of scoring at the shapes of Llama 1B and 8B, against float64 and the memory bound."""

from collections.abc import Callable, Sequence

import torch

from specprefill_sgl.cli.doctor import machine
from specprefill_sgl.cli.doctor.checks import Recorder

_SHAPES = {"1B": (32, 8, 64), "8B": (32, 8, 128)}  # heads, key heads, head size
_LENGTH = 32_768
_VOTES = {"paper": (8, None, 13), "best": (48, list(range(0, 32, 4)), 31)}  # queries, chosen heads, pooling
_MOST = 1e-3  # of the largest vote; what products of bfloat16 keys and the kernels' float32 sums leave
_COPIED = 1 << 28  # bytes


def run(recorder: Recorder) -> None:
    """A check of the values and a measurement of the time for each shape and rule."""
    cases = [(shape, rule) for shape in _SHAPES for rule in _VOTES]
    if not machine.has_gpu():
        for shape, rule in cases:
            recorder.not_run(f"votes of {rule}, {shape}", machine.NO_GPU)
        return
    bandwidth = _bandwidth()
    recorder.measured("copy bandwidth", f"{bandwidth / 1e9:.0f} GB/s")
    for shape, rule in cases:
        _case(recorder, shape, rule, bandwidth)


def _case(recorder: Recorder, shape: str, rule: str, bandwidth: float) -> None:
    error, call, n_bytes = compared(shape, rule, _LENGTH, "cuda")
    recorder.holds(f"votes of {rule}, {shape}, against float64", error < _MOST, f"{error:.1e}", f"< {_MOST:.0e} of the largest")
    took, bound = _milliseconds(call), n_bytes / bandwidth * 1e3
    found = f"{took:.3f} ms a layer, {bound / took:.2f} of the memory bound"
    recorder.measured(f"votes of {rule}, {shape}, {_LENGTH} tokens", found)


def compared(shape: str, rule: str, length: int, device: str) -> tuple[float, Callable[[], None], int]:
    """How far the kernels' votes are from exact ones, as a share of the largest; a call to time, and the bytes of its keys."""
    from specprefill_sgl.scoring.packed import pack
    from specprefill_sgl.scoring.triton_scoring import accumulate_votes

    (heads, key_heads, dim), (votes, chosen, pool) = _SHAPES[shape], _VOTES[rule]
    torch.manual_seed(0)
    slots = torch.randperm(length, device=device)
    keys = torch.randn(length, key_heads, dim, device=device, dtype=torch.bfloat16)
    queries = torch.randn(votes, heads, dim, device=device, dtype=torch.bfloat16)
    visible = list(range(length - votes + 1, length + 1)) if chosen else [length] * votes
    counted = (4, length - votes) if chosen else (0, length)
    packed, out = pack([slots], [visible], [counted]), torch.zeros(votes, length, device=device)

    def call() -> None:
        accumulate_votes(out, queries[None], keys, packed, scaling=dim**-0.5, logit_cap=0.0, pool_kernel=pool, heads=chosen)

    call()
    want = exact_votes(queries, keys[slots], visible, counted, chosen, pool)
    return float((out - want).abs().max() / want.abs().max()), call, keys.numel() * keys.element_size()


def exact_votes(
    queries: torch.Tensor,
    keys: torch.Tensor,
    visible: Sequence[int],
    counted: tuple[int, int],
    chosen: Sequence[int] | None,
    pool: int,
) -> torch.Tensor:
    """Pooled attention [votes, tokens] in float64, apart from `scoring`: the chosen heads' sum, else the maximum."""
    group = queries.shape[1] // keys.shape[1]
    position = torch.arange(len(keys), device=keys.device)
    hidden = position >= torch.tensor(visible, device=keys.device)[:, None]
    kernel = torch.full((1, 1, pool), 1 / pool, dtype=torch.float64, device=keys.device)
    total = None
    for head in range(queries.shape[1]) if chosen is None else chosen:
        logits = queries[:, head].double() @ keys[:, head // group].double().T * keys.shape[-1] ** -0.5
        attention = logits.masked_fill(hidden, float("-inf")).softmax(dim=-1)
        attention[:, : counted[0]] = 0
        attention[:, counted[1] :] = 0
        pooled = torch.nn.functional.conv1d(attention[:, None], kernel, padding=pool // 2)[:, 0]
        combine = torch.maximum if chosen is None else torch.add
        total = pooled if total is None else combine(total, pooled)
    assert total is not None
    return total


def _bandwidth() -> float:
    """Bytes read and written a second by a large copy."""
    source = torch.empty(_COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * _COPIED / _milliseconds(lambda: target.copy_(source)) * 1e3


def _milliseconds(call: Callable) -> float:
    """Median on a device whose caches are emptied between calls."""
    from triton.testing import do_bench

    return float(do_bench(call, return_mode="median"))
