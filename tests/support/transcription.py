"""Scoring transcribed from docs/selection.md, 2 to 4, in float64: what every implementation must equal."""

import math

import torch


def transcribed(queries, keys, scaling, cap, kernel, sinks=None, *, visible=None, counted=None, chosen=None):
    """a[h, t, j], pooled with zero padding counted, max over h or sum over the chosen: one scalar at a time.

    A sink is one more logit of its head, and no position's. Query t sees the first visible[t] positions; attention on those
    that are not counted is no attention.
    """
    votes, heads, _ = queries.shape
    n, kv_heads, _ = keys.shape
    best = torch.zeros(votes, n, dtype=torch.float64)
    for h in range(heads) if chosen is None else chosen:
        k = keys[:, h // (heads // kv_heads)].double()
        for t in range(votes):
            sees = n if visible is None else visible[t]
            logits = [float(k[j] @ queries[t, h].double()) * scaling for j in range(sees)]
            if cap:
                logits = [cap * math.tanh(x / cap) for x in logits]
            if sinks is not None:
                logits.append(float(sinks[h]))
            top = max(logits)
            weights = [math.exp(x - top) for x in logits]
            a = [w / sum(weights) for w in weights][:sees] + [0.0] * (n - sees)
            if counted is not None:
                a = [w if counted[0] <= j < counted[1] else 0.0 for j, w in enumerate(a)]
            for j in range(n):
                window = [a[i] for i in range(j - kernel // 2, j + kernel // 2 + 1) if 0 <= i < n]
                pooled = sum(window) / kernel
                best[t, j] = max(best[t, j], pooled) if chosen is None else best[t, j] + pooled
    return best
