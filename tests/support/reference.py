"""Speculative Prefill with Hugging Face `transformers` alone (docs/selection.md): what the server must equal.

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
def draft_votes(
    model, ids, *, lookahead=8, window=0, pool_kernel=13, ignore_first=0, ignore_last=0, heads=None, eos_ids=(), first=None
):
    """Pooled attention of each query (docs/selection.md, 1 to 3): of the window's, of the lookahead's; [votes, N].

    `heads` are (layer, head) pairs whose mean votes; without it the maximum over all. A lookahead of 1 beside a window is none.
    With `first`, only so many layers read the prompt; without `heads` the last quarter of those that see all of it votes.
    """
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
    last = [(t, -1, n) for t in range(ends[0] + 1 if ends else lookahead)]  # forward, row of it, tokens it sees
    asked = [(0, row, row + 1) for row in range(max(n - window, 0), n)]
    may = {i: prefill for i, prefill in seen[0].items() if first is None or i < first}
    layers = {i: prefill for i, prefill in may.items() if not prefill[4] or prefill[4] >= n + lookahead} or may
    if first is not None and heads is None:
        layers = dict(list(layers.items())[-max(len(layers) // 4, 1) :])
    pooling = {"pool_kernel": pool_kernel, "ignore_first": ignore_first, "ignore_last": ignore_last, "heads": heads}
    return {
        which: torch.stack([_query_votes(seen[t], layers, row, sees, n, **pooling) for t, row, sees in rows])
        for which, rows in (("window", asked), ("lookahead", last if lookahead > 1 or not window else []))
        if rows
    }


def _query_votes(seen, layers, row, sees, n, *, pool_kernel, ignore_first, ignore_last, heads):
    """One query's pooled attention on the prompt, [N]."""
    found = []
    for layer, (_, keys, scaling, softcap, _, sinks) in layers.items():
        query = seen[layer][0][:, row]  # [H, d]
        keys_of_heads = keys.repeat_interleave(query.shape[0] // keys.shape[0], dim=0)  # [H, N, d]
        logits = torch.einsum("hd,hjd->hj", query, keys_of_heads[:, :sees]) * scaling
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        if sinks is not None:
            logits = torch.cat([logits, sinks[:, None]], dim=-1)
        attention = torch.zeros(query.shape[0], n)
        attention[:, :sees] = logits.softmax(dim=-1)[:, :sees]
        attention[:, :ignore_first] = 0
        attention[:, n - ignore_last :] = 0
        pooled = avg_pool1d(attention[:, None], pool_kernel, stride=1, padding=pool_kernel // 2)[:, 0]
        found += [pooled[h] for h in range(len(pooled)) if heads is None or (layer, h) in heads]
    stacked = torch.stack(found) if found else torch.zeros(1, n)
    return stacked.amax(dim=0) if heads is None else stacked.sum(dim=0) / len(heads)


def draft_importance(model, ids, *, lookahead=8, pool_kernel=13, eos_ids=()):
    """Importance of each prompt token by the paper's rule, float32 [N] (docs/selection.md, 1 to 4)."""
    return draft_votes(model, ids, lookahead=lookahead, pool_kernel=pool_kernel, eos_ids=eos_ids)["lookahead"].mean(dim=0)


def early_importance(model, ids, layers):
    """The same where a model's first layers read: nothing is decoded ahead, the last 48 tokens vote (docs/methods.md)."""
    return draft_votes(model, ids, lookahead=1, window=48, first=layers)["window"].mean(dim=0)


def select_chunks(importance, *, keep_ratio, chunk_size=32, keep_first=0, keep_last=0, protect=()):
    """Kept positions, ascending (docs/selection.md, 5)."""
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


def tail_chunks(n, *, keep_ratio, chunk_size, keep_last):
    """Chunks at the end that are kept whatever their score: the last, and what is wanted and an eighth of the budget holds."""
    chunks = [range(start, min(start + chunk_size, n)) for start in range(0, n, chunk_size)]
    tail = [len(chunks) - 1]
    for i in reversed(range(len(chunks) - 1)):
        is_wanted = n > keep_last and chunks[i].stop > n - keep_last
        if not is_wanted or n - chunks[i].start > math.ceil(n * keep_ratio) // 8:
            break
        tail.insert(0, i)
    return tail


def select_tokens(scores, n, forced, *, keep_ratio, chunk_size):
    """Kept positions of a budget of tokens, by scores of chunks and those kept anyway (docs/selection.md, 5)."""
    chunks = [range(start, min(start + chunk_size, n)) for start in range(0, n, chunk_size)]
    budget = math.ceil(n * keep_ratio)
    room = max(budget - sum(len(chunks[i]) for i in forced), math.ceil(budget / 2))
    others = sorted((i for i in range(len(chunks)) if i not in forced), key=lambda i: (-float(scores[i]), i))
    return sorted(p for i in [*others[: max(room // chunk_size, 1)], *forced] for p in chunks[i])


def greedy(model, ids, positions, n_prompt, max_new_tokens):
    """Greedy tokens and their logprobs after prefilling only `positions` of the prompt (docs/selection.md, 6)."""
    tokens, logprobs = [], []
    logits, cache = _forward(model, [ids[p] for p in positions], positions, None)
    for step in range(max_new_tokens):
        tokens.append(int(logits.argmax()))
        logprobs.append(float(logits.log_softmax(dim=-1)[tokens[-1]]))
        if step + 1 < max_new_tokens:
            logits, cache = _forward(model, tokens[-1:], [n_prompt + step], cache)
    return tokens, logprobs


@torch.no_grad()
def answer_votes(model, ids, said, fresh, *, pool_kernel, ignore_first=0, ignore_last=0, heads=None):
    """Pooled attention on the prompt of each of an answer's last `fresh` tokens, [fresh, N] (docs: Tokens that return, 1)."""
    global _record
    n, total = len(ids), len(ids) + len(said)
    _record = [{}]
    try:
        _forward(model, [*ids, *said], range(total), None)
        (seen,) = _record
    finally:
        _record = None
    how = {"pool_kernel": pool_kernel, "ignore_first": ignore_first, "ignore_last": ignore_last, "heads": heads}
    rows = [_query_votes(seen, seen, -1 - back, n, n, **how) for back in reversed(range(fresh))]
    return torch.stack(rows)


def greedy_revived(model, ids, prefills, n_prompt, max_new_tokens, *, said=(), adjust=None):
    """Greedy tokens where after so many of them other positions are prefilled, and the answer so far after them.

    `prefills` are (output tokens, positions), the first after what was `said` already; `adjust` changes logits, by the
    answer so far.
    """
    tokens, changes = list(said), dict(prefills)
    while len(tokens) < max_new_tokens:
        now = len(tokens)
        if now in changes:
            kept = changes[now]
            positions = [*kept, *range(n_prompt, n_prompt + now)]
            logits, cache = _forward(model, [*(ids[p] for p in kept), *tokens], positions, None)
        else:
            logits, cache = _forward(model, tokens[-1:], [n_prompt + now - 1], cache)
        tokens.append(int((logits if adjust is None else adjust(logits, tokens)).argmax()))
    return tokens


def penalties(ids, *, frequency_penalty=0.0, repetition_penalty=1.0, lags=False):
    """SGLang's, of an answer's tokens. Under the overlap schedule it counts the prompt's last one, and not yet the last."""

    def adjust(logits, said):
        counted = torch.tensor([ids[-1], *said[:-1]] if lags and said else said, dtype=torch.long)
        logits = logits.flatten() - frequency_penalty * torch.bincount(counted, minlength=logits.numel())
        scaled = torch.where(logits < 0, logits * repetition_penalty, logits / repetition_penalty)
        logits[counted] = scaled[counted]
        return logits

    return adjust
