"""`torch_native` of the CPU platform, through its paged pools: against SGLang's own where that is right, and a float64 loop."""

import math
from types import SimpleNamespace

import pytest
import sglang.srt.managers.scheduler  # noqa: F401  SGLang loads the platform, never the other way round
import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from specprefill_sgl.platforms.torch_attention import TorchAttention

SLOTS, DIM = 60, 16
EXTENDS = [(0, 5), (7, 1), (9, 6)]  # cached and new tokens of three requests
DECODES = [(11, 1), (0, 1), (6, 1)]
ROWS = [2, 0, 1]
WINDOWED, FULL = 0, 1  # layer ids


class TwoPools(SWAKVPool):
    """Keys and values of one full and one windowed layer, in slots that have nothing to do with each other.

    The windowed layer keeps what the windows of the newest tokens see; all else is gone, and what was there is NaN.
    """

    def __init__(self, caches: tuple[torch.Tensor, torch.Tensor], seen: torch.Tensor):
        self.layers_mapping = {WINDOWED: (0, True), FULL: (0, False)}
        self.full_to_swa_index_mapping = torch.full((SLOTS,), -1)
        self.full_to_swa_index_mapping[seen] = torch.randperm(SLOTS)[: len(seen)]
        windowed = [torch.full_like(cache, math.nan) for cache in caches]
        for cache, full in zip(windowed, caches, strict=True):
            cache[self.full_to_swa_index_mapping[seen]] = full[seen]
        self.of_layer = {WINDOWED: windowed, FULL: caches}

    def get_key_buffer(self, layer_id):
        return self.of_layer[layer_id][0]

    def get_value_buffer(self, layer_id):
        return self.of_layer[layer_id][1]


class Case:
    """Requests of random queries, keys and values; `attend` runs a backend on them."""

    def __init__(self, requests, heads, kv_heads, *, v_dim=DIM, dtype=torch.float32, cap=0.0, window=-1, sinks=False):
        torch.manual_seed(heads + 10 * kv_heads)
        self.requests, self.window, self.cap = requests, window, cap
        self.keys, self.values = (torch.randn(SLOTS, kv_heads, dim).to(dtype) for dim in (DIM, v_dim))
        self.queries = torch.randn(sum(new for _, new in requests), heads, DIM).to(dtype)
        self.slots = torch.randperm(SLOTS)[:48].view(3, 16)
        self.sinks = torch.randn(heads) if sinks else None

    def _layer(self, layer_id):
        heads, kv_heads = self.queries.shape[1], self.keys.shape[1]
        return RadixAttention(
            heads, DIM, 0.3, kv_heads, layer_id, self.cap, self.values.shape[-1], sliding_window_size=self.window
        )

    def _pool(self, two_pools):
        if two_pools:
            spans = zip(ROWS, self.requests, strict=True)
            seen = [self.slots[row, max(0, start - self.window) : start + new] for row, (start, new) in spans]
            return TwoPools((self.keys, self.values), torch.cat(seen))
        return SimpleNamespace(get_key_buffer=lambda _: self.keys, get_value_buffer=lambda _: self.values)

    def attend(self, backend_class, *, two_pools=False, layer_id=FULL):
        """[tokens, heads, v_dim]"""
        backend = backend_class.__new__(backend_class)
        backend.req_to_token_pool, backend.token_to_kv_pool = SimpleNamespace(req_to_token=self.slots), self._pool(two_pools)
        starts, lengths = map(torch.tensor, zip(*self.requests, strict=True))
        batch = SimpleNamespace(
            req_pool_indices=torch.tensor(ROWS),
            seq_lens=starts + lengths,
            extend_prefix_lens=starts,
            extend_seq_lens=lengths,
            encoder_lens=None,
            out_cache_loc=None,
            forward_mode=ForwardMode.DECODE if self.requests is DECODES else ForwardMode.EXTEND,
            spec_info=None,
        )
        forward = backend.forward_decode if self.requests is DECODES else backend.forward_extend
        given = {} if self.sinks is None else {"sinks": self.sinks}
        out = forward(self.queries.flatten(1), None, None, self._layer(layer_id), batch, save_kv_cache=False, **given)
        return out.view(*self.queries.shape[:2], -1)

    def wanted(self):
        """The definition, one query, head and key at a time, in float64."""
        out, group = [], self.queries.shape[1] // self.keys.shape[1]
        queries = iter(self.queries.double())
        for row, (start, new) in zip(ROWS, self.requests, strict=True):
            for at in range(start, start + new):
                query = next(queries)
                first = 0 if self.window < 0 else max(0, at - self.window)
                visible = self.slots[row, first : at + 1]
                heads = []
                for head in range(len(query)):
                    logits = [0.3 * float(self.keys[slot, head // group].double() @ query[head]) for slot in visible]
                    if self.cap:
                        logits = [self.cap * math.tanh(logit / self.cap) for logit in logits]
                    total = sum(map(math.exp, logits)) + (0 if self.sinks is None else math.exp(self.sinks[head]))
                    weighed = zip(logits, visible, strict=True)
                    heads.append(sum(math.exp(x) / total * self.values[slot, head // group].double() for x, slot in weighed))
                out.append(torch.stack(heads))
        return torch.stack(out)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1), (8, 8)])
def test_grouped_decodes_are_those_of_the_backend_it_replaces(heads, kv_heads):
    case = Case(DECODES, heads, kv_heads, v_dim=8)
    torch.testing.assert_close(case.attend(TorchAttention), case.attend(TorchNativeAttnBackend))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1), (8, 8)])
def test_extends_are_those_of_the_backend_it_replaces(heads, kv_heads):
    wanted = Case(EXTENDS, heads, kv_heads, dtype=torch.float64).attend(TorchNativeAttnBackend)
    for dtype, error in ((torch.float32, 2e-6), (torch.bfloat16, 0.03)):
        got = Case(EXTENDS, heads, kv_heads, dtype=dtype).attend(TorchAttention)
        torch.testing.assert_close(got.double(), wanted, atol=error, rtol=0)


@pytest.mark.parametrize("requests", [EXTENDS, DECODES], ids=["extend", "decode"])
@pytest.mark.parametrize("v_dim", [DIM, 8])
@pytest.mark.parametrize("cap", [0.0, 0.8])
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("window", [-1, 3])
def test_every_form_is_its_definition(requests, v_dim, cap, sinks, window):
    case = Case(requests, 6, 2, v_dim=v_dim, cap=cap, sinks=sinks, window=window)
    torch.testing.assert_close(case.attend(TorchAttention).double(), case.wanted(), atol=2e-6, rtol=0)


@pytest.mark.parametrize("requests", [EXTENDS, DECODES], ids=["extend", "decode"])
@pytest.mark.parametrize("cap", [0.0, 0.8])
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize(("layer_id", "window"), [(WINDOWED, 3), (FULL, -1)])
def test_layers_of_a_windowed_pool_are_read_where_they_lie(requests, cap, sinks, layer_id, window):
    case = Case(requests, 4, 2, cap=cap, sinks=sinks, window=window)
    got = case.attend(TorchAttention, two_pools=True, layer_id=layer_id)
    torch.testing.assert_close(got.double(), case.wanted(), atol=2e-6, rtol=0)


def _flops(case: Case) -> int:
    def of_fused(query, key, value, *_args, **_kwargs):
        return sdpa_flop_count(query, key, value)

    counted = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: of_fused}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        case.attend(TorchAttention)
    return counter.get_total_flops()


def test_a_cached_prefix_is_not_attended_from_again():
    assert _flops(Case(EXTENDS, 4, 2)) == sum(4 * 4 * DIM * new * (start + new) for start, new in EXTENDS)


def test_what_no_window_reaches_is_not_attended_to():
    seen = [(min(start, 3) + new, new) for start, new in EXTENDS]
    assert _flops(Case(EXTENDS, 4, 2, window=3)) == sum(4 * 4 * DIM * new * keys for keys, new in seen)
