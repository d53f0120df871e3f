"""The method lazy with Hugging Face `transformers` alone, one layer at a time: what the server must equal (README, Lazy).

Nothing here imports sglang or specprefill_sgl. Everything is float32 and one prompt at a time.
"""

import math

import torch
from torch.nn.functional import avg_pool1d

from tests.support.reference import select_tokens, tail_chunks

PAPER = {"window": 1, "pool": 1, "chunk": 1, "first": 0, "tail": 0, "heads": "mean", "over": "mean"}
BEST = {"window": 48, "pool": 31, "chunk": 8, "first": 4, "tail": 48, "heads": "max", "over": "max"}


class Lazy:
    """A model whose layers see their own tokens.

    Parameters
    ----------
    model : transformers model, float32
    bounds : sequence of int
        Layers from which on tokens are dropped.
    rule : dict
        `PAPER` or `BEST`, or one like them.
    keep : sequence of float
        Of each of these layers, the fraction of the prompt that is kept.
    calibrated : sequence of (layer, head)
        Heads whose mean votes by `BEST`, at the next of these layers above them.
    """

    def __init__(self, model, bounds, rule, keep, calibrated=()):
        self.model, self.rule, self.keep, self.calibrated = model, rule, keep, calibrated
        self.parts = list(zip([0, *bounds], [*bounds, len(model.model.layers)], strict=True))
        self.heads = model.config.num_attention_heads

    @torch.no_grad()
    def answer(self, ids, new, *, cached=0, kept=None, returns=None):
        """Greedy tokens, and of each stage the prompt positions that it kept.

        `cached` leading tokens are in all layers, computed densely; then what each stage keeps must be given. `returns`, if
        given, says after how many output tokens the answer was asked, and how many chunks may return at a time.
        """
        n = len(ids)
        self.keys, self.seen, self.waiting, self.queries = {}, {}, {}, {}
        self.kept, self.n = [[]] * len(self.parts), n
        if cached:
            hidden = self.model.model.embed_tokens(torch.tensor(ids[:cached]))
            for first, end in self.parts:
                hidden = self.run(hidden, list(range(cached)), first, end)
        at = list(range(cached, n))
        hidden = self.model.model.embed_tokens(torch.tensor(ids[cached:]))
        for stage, (first, end) in enumerate(self.parts):
            if stage:
                going = self.choose(stage, n, set(at)) if kept is None else [p for p in kept[stage - 1] if p in set(at)]
                self.kept[stage] = sorted({*range(cached), *going})
                self.waiting[stage] = {p: row for p, row in zip(at, hidden, strict=True) if p not in set(going)}
                hidden = torch.stack([row for p, row in zip(at, hidden, strict=True) if p in set(going)])
                at = [p for p in at if p in set(going)]
            self.queries = {}
            hidden = self.run(hidden, at, first, end)
        tokens, fresh = [], []
        asked, most = returns or (set(), 0)
        while True:
            tokens.append(int(self.logits(hidden[-1:]).argmax()))
            if len(tokens) == new:
                return tokens, self.kept[1:]
            if len(tokens) in asked:
                self.bring_back(fresh, most)
                fresh = []
            hidden = self.model.model.embed_tokens(torch.tensor(tokens[-1:]))
            self.queries = {}
            for first, end in self.parts:
                hidden = self.run(hidden, [n + len(tokens) - 1], first, end)
            fresh.append(self.queries)

    def logits(self, hidden):
        return self.model.lm_head(self.model.model.norm(hidden)).float()

    def run(self, hidden, at, first, end):
        """Tokens at these positions through some layers, after what is in each: [tokens, hidden_size]."""
        positions = torch.tensor([at])
        cos, sin = self.model.model.rotary_emb(hidden[None], positions)
        for number in range(first, end):
            layer = self.model.model.layers[number]
            attention, normed = layer.self_attn, layer.input_layernorm(hidden)
            query, key, value = (
                project(normed).view(len(at), -1, attention.head_dim).transpose(0, 1)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            if hasattr(attention, "q_norm"):
                query, key = attention.q_norm(query), attention.k_norm(key)
            query, key = (rotated(one, cos[0], sin[0]) for one in (query, key))
            if number in self.keys:
                key, value = (torch.cat(pair, dim=1) for pair in zip(self.keys[number], (key, value), strict=True))
            self.keys[number] = key, value
            self.seen[number] = [*self.seen.get(number, []), *at]
            self.queries[number] = query, at
            group, total = query.shape[0] // key.shape[0], key.shape[1]
            scores = query @ key.repeat_interleave(group, 0).transpose(1, 2) / math.sqrt(attention.head_dim)
            later = torch.arange(total) > torch.arange(total - len(at), total)[:, None]
            weights = scores.masked_fill(later, float("-inf")).softmax(-1)
            mixed = (weights @ value.repeat_interleave(group, 0)).transpose(0, 1).reshape(len(at), -1)
            hidden = hidden + attention.o_proj(mixed)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return hidden

    def voting(self, stage):
        """Layer -> its heads that vote in front of a stage, and whether their mean does, not their maximum."""
        first, end = self.parts[stage - 1]
        every = list(range(self.heads))
        if self.rule["heads"] == "mean":
            return {end - 1: every}, True
        own = {number: [head for layer, head in self.calibrated if layer == number] for number in range(first, end)}
        if any(own.values()):
            return {number: heads for number, heads in own.items() if heads}, True
        return {number: every for number in range(max(first, end - max(end // 4, 1)), end)}, False

    def votes(self, stage, rows, fill):
        """Of each query [heads, dim] by layer, with how many of the present tokens it sees: [votes, N]."""
        voting, is_mean = self.voting(stage)
        layers = list(voting)
        order = sorted(range(len(self.seen[layers[0]])), key=lambda i: self.seen[layers[0]][i])
        order = [i for i in order if self.seen[layers[0]][i] < self.n]
        present = [self.seen[layers[0]][i] for i in order]
        begin = sum(p < self.rule["first"] for p in present)
        end = sum(p < self.n - self.ignored for p in present)
        found = torch.full((len(rows), self.n), fill)
        for which, (by_layer, position) in enumerate(rows):
            sees = sum(p <= position for p in present)
            pooled = []
            for layer in layers:
                keys = self.keys[layer][0][:, order].repeat_interleave(self.heads // self.keys[layer][0].shape[0], 0)
                scores = torch.einsum("hd,hnd->hn", by_layer[layer], keys[:, :sees]) / math.sqrt(keys.shape[-1])
                weights = torch.zeros(self.heads, len(present))
                weights[:, :sees] = scores.softmax(-1)
                weights[:, :begin] = 0
                weights[:, end:] = 0
                width = self.rule["pool"]
                pooled.append(avg_pool1d(weights[:, None], width, stride=1, padding=width // 2)[voting[layer], 0])
            pooled = torch.cat(pooled)
            found[which, present] = pooled.mean(0) if is_mean else pooled.amax(0)
        return found

    def over(self, votes):
        return votes.mean(0) if self.rule["over"] == "mean" else votes.amax(0)

    def tail(self):
        if not self.rule["tail"]:
            return [(self.n - 1) // self.rule["chunk"]]
        return tail_chunks(self.n, keep_ratio=self.keep[-1], chunk_size=self.rule["chunk"], keep_last=self.rule["tail"])

    def forced(self):
        """Chunks that are kept unasked: the tail's, and those of the attention sinks that do not count."""
        sinks = {p // self.rule["chunk"] for p in range(min(self.rule["first"], self.n))}
        return sorted({*sinks, *self.tail()})

    def selected(self, importance, ratio):
        size = self.rule["chunk"]
        scores = [float(part.mean()) for part in importance.split(size)]
        return select_tokens(scores, self.n, self.forced(), keep_ratio=ratio, chunk_size=size)

    def choose(self, stage, n, at):
        """Positions of those in front of a stage that go on."""
        ratio, first = self.keep[stage - 1], n - self.rule["window"]
        self.ignored = n - self.tail()[0] * self.rule["chunk"] if self.rule["tail"] else 0
        layers = list(self.voting(stage)[0])
        own = self.queries[layers[0]][1]
        rows = [({layer: self.queries[layer][0][:, i] for layer in layers}, p) for i, p in enumerate(own) if first <= p < n]
        importance = self.over(self.votes(stage, rows, -1.0))
        return [p for p in self.selected(importance, ratio) if p in at]

    def bring_back(self, fresh, most):
        """What the last output tokens ask for, before the next one."""
        for stage in range(1, len(self.parts)):
            layers = list(self.voting(stage)[0])
            rows = [({layer: one[layer][0][:, 0] for layer in layers}, 2**62) for one in fresh]
            importance = self.over(self.votes(stage, rows, 0.0))
            size, have = self.rule["chunk"], set(self.kept[stage])
            scores = [float(part.mean()) for part in importance.split(size)]
            mean = sum(scores) / len(scores)
            chunks = sorted({p // size for p in self.selected(importance, self.keep[stage - 1])}, key=lambda i: (-scores[i], i))
            tokens = {i: list(range(i * size, min(i * size + size, self.n))) for i in chunks}
            lacking = [i for i in chunks if scores[i] >= 3 * mean and not set(tokens[i]) <= have][:most]
            new = sorted(p for i in lacking for p in tokens[i] if p in self.waiting[stage])
            if not new:
                continue
            hidden = torch.stack([self.waiting[stage].pop(p) for p in new])
            self.queries = {}
            hidden = self.run(hidden, new, *self.parts[stage])
            self.kept[stage] = sorted({*self.kept[stage], *new})
            if stage + 1 < len(self.parts):
                self.waiting[stage + 1].update(zip(new, hidden, strict=True))


def rotated(x, cos, sin):
    """Rotary embedding of [heads, tokens, dim]."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin
