"""Scoring transcribed from README, What is computed, 2 to 4, in float64: what every implementation must equal."""

import math

import torch


def transcribed(queries, keys, scaling, cap, kernel, sinks=None):
    """a[h, t, j], pooled with zero padding counted, max over h: one scalar at a time.

    A sink is one more logit of its head, and no position's.
    """
    votes, heads, _ = queries.shape
    n, kv_heads, _ = keys.shape
    best = torch.zeros(votes, n, dtype=torch.float64)
    for h in range(heads):
        k = keys[:, h // (heads // kv_heads)].double()
        for t in range(votes):
            logits = [float(k[j] @ queries[t, h].double()) * scaling for j in range(n)]
            if cap:
                logits = [cap * math.tanh(x / cap) for x in logits]
            if sinks is not None:
                logits.append(float(sinks[h]))
            top = max(logits)
            weights = [math.exp(x - top) for x in logits]
            a = [w / sum(weights) for w in weights][:n]
            for j in range(n):
                window = [a[i] for i in range(j - kernel // 2, j + kernel // 2 + 1) if 0 <= i < n]
                best[t, j] = max(best[t, j], sum(window) / kernel)
    return best
