"""Speculative Prefill with Hugging Face `transformers` alone (README, What is computed): what the server must equal.

Nothing here imports sglang or specprefill_sgl. Everything is float32 and one prompt at a time.
"""

import math

import torch
from torch.nn.functional import avg_pool1d
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

_NAME = "specprefill_reference"
_record: list[dict] | None = None  # one entry per forward: layer -> what its attention saw


def _attention(
    module, query, key, value, attention_mask, scaling, dropout=0.0, softcap=None, sliding_window=None, s_aux=None, **_
):
    """Exact attention: query [1, H, q, d], key and value [1, Hkv, k, d] -> [1, q, H, d]; records what it sees.

    `s_aux` [H] are sinks: one more logit per head, whose weight goes nowhere.
    """
    if _record is not None:
        _record[-1][module.layer_idx] = (query[0], key[0], scaling, softcap, sliding_window, s_aux)
    group = query.shape[1] // key.shape[1]
    logits = query @ key.repeat_interleave(group, dim=1).transpose(-1, -2) * scaling
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    if attention_mask is not None:
        logits = logits + attention_mask[..., : key.shape[2]]
    if s_aux is not None:
        logits = torch.cat([logits, s_aux.reshape(1, -1, 1, 1).expand(1, -1, logits.shape[2], 1)], dim=-1)
    weights = logits.float().softmax(dim=-1)[..., : key.shape[2]]
    return (weights @ value.repeat_interleave(group, dim=1)).transpose(1, 2).contiguous(), weights


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, eager_mask)


@torch.no_grad()
def _forward(model, ids, positions, cache):
    """Logits of the last token; causal over what is in the cache and these tokens, whatever their positions are.

    `cache` is None or transformers' cache and how many tokens are in it.
    """
    model.set_attn_implementation(_NAME)
    past, seen = (None, 0) if cache is None else cache
    out = model(
        input_ids=torch.tensor([list(ids)]),
        position_ids=torch.tensor([list(positions)]),
        attention_mask=torch.ones(1, seen + len(ids), dtype=torch.long),  # none is padding: each layer makes its own mask
        past_key_values=past,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[0, -1].float(), (out.past_key_values, seen + len(ids))


@torch.no_grad()
def draft_importance(model, ids, *, lookahead=8, pool_kernel=13, eos_ids=()):
    """Importance of each prompt token, float32 [N] (README, What is computed, 1 to 4)."""
    global _record
    n = len(ids)
    _record = []
    try:
        tokens, positions, cache, fed = list(ids), list(range(n)), None, []
        for step in range(lookahead):
            _record.append({})
            logits, cache = _forward(model, tokens, positions, cache)
            if step:
                fed.append(tokens[0])
            tokens, positions = [int(logits.argmax())], [n + step]
        seen = _record
    finally:
        _record = None
    ends = [t for t, token in enumerate(fed, start=1) if token in eos_ids]
    votes = ends[0] + 1 if ends else lookahead
    layers = {i: prefill for i, prefill in seen[0].items() if not prefill[4] or prefill[4] >= n + lookahead} or seen[0]
    importance = torch.zeros(n)
    for t in range(votes):
        best = torch.zeros(n)
        for layer, (_, keys, scaling, softcap, _, sinks) in layers.items():
            query = seen[t][layer][0][:, -1]  # [H, d]
            keys_of_heads = keys.repeat_interleave(query.shape[0] // keys.shape[0], dim=0)  # [H, N, d]
            logits = torch.einsum("hd,hjd->hj", query, keys_of_heads[:, :n]) * scaling
            if softcap:
                logits = softcap * torch.tanh(logits / softcap)
            if sinks is not None:
                logits = torch.cat([logits, sinks[:, None]], dim=-1)
            attention = logits.softmax(dim=-1)[:, :n]
            pooled = avg_pool1d(attention[:, None], pool_kernel, stride=1, padding=pool_kernel // 2)[:, 0]
            best = torch.maximum(best, pooled.amax(dim=0))
        importance += best
    return importance / votes


def select_chunks(importance, *, keep_ratio, chunk_size=32, keep_first=0, keep_last=0, protect=()):
    """Kept positions, ascending (README, What is computed, 5)."""
    n = len(importance)
    chunks = [range(start, min(start + chunk_size, n)) for start in range(0, n, chunk_size)]
    scores = [float(importance[c.start : c.stop].mean()) for c in chunks]
    always = {n - 1, *range(min(keep_first, n)), *range(max(n - keep_last, 0), n)}
    always |= {p for start, end in protect for p in range(start, end)}
    forced = [i for i, c in enumerate(chunks) if always & set(c)]
    budget = math.ceil(len(chunks) * keep_ratio)
    free = max(budget - len(forced), math.ceil(budget / 2))
    others = sorted((i for i in range(len(chunks)) if i not in forced), key=lambda i: (-scores[i], i))
    return [p for i in sorted(forced + others[:free]) for p in chunks[i]]


def greedy(model, ids, positions, n_prompt, max_new_tokens):
    """Greedy tokens and their logprobs after prefilling only `positions` of the prompt (README, What is computed, 6)."""
    tokens, logprobs = [], []
    logits, cache = _forward(model, [ids[p] for p in positions], positions, None)
    for step in range(max_new_tokens):
        tokens.append(int(logits.argmax()))
        logprobs.append(float(logits.log_softmax(dim=-1)[tokens[-1]]))
        if step + 1 < max_new_tokens:
            logits, cache = _forward(model, tokens[-1:], [n_prompt + step], cache)
    return tokens, logprobs
