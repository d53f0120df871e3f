"""Drafts several prompts together: chunked extend, then lookahead decode, with SGLang's own batch objects.

Mirrors how `sglang.benchmark.one_batch` drives a `ModelRunner` without a scheduler, which SGLang keeps working from release to
release. The caller owns the pools: they hold the prompts' KV after `run` and are cleared by `DraftModel.clear`.
"""

from array import array
from collections.abc import Sequence

import torch
from sglang.benchmark.one_batch import TreeCacheNamespace
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from specprefill_sgl.draft.capture import QueryCapture


class DraftedPrompt:
    """One drafted prompt: where its keys are and which queries vote.

    Attributes
    ----------
    queries : dict[int, Tensor]
        Layer id -> [votes, heads, head_dim] on the device, `votes` <= lookahead.
    slots : int64 [prompt_tokens]
        KV slots of the prompt in the draft's pool.
    """

    def __init__(self, queries: dict[int, torch.Tensor], slots: torch.Tensor):
        self.queries = queries
        self.slots = slots


class DraftGroup:
    """Prompts drafted in shared forwards.

    Parameters
    ----------
    runner : ModelRunner
        The draft, with private pools large enough for all prompts and their lookahead.
    capture : QueryCapture
        The proxy installed as the runner's attention backend.
    prompts : sequence of array('q')
        Token ids of each prompt.
    lookahead : int
        Queries recorded per prompt: the last prompt token's and `lookahead - 1` decoded ones.
    chunk_tokens : int
        Most prompt tokens in one forward; longer prompts are extended in chunks.
    """

    def __init__(self, runner, capture: QueryCapture, prompts: Sequence[array], *, lookahead: int, chunk_tokens: int):
        self._runner, self._capture = runner, capture
        self._lookahead, self._chunk_tokens = lookahead, chunk_tokens
        self._tree_cache = TreeCacheNamespace(
            page_size=runner.page_size,
            device=runner.device,
            token_to_kv_pool_allocator=runner.token_to_kv_pool_allocator,
        )
        self._reqs = [_draft_req(index, ids) for index, ids in enumerate(prompts)]
        self._batch: ScheduleBatch | None = None  # prompts whose extend is done, ready to decode

    def run(self) -> list[DraftedPrompt]:
        """Draft all prompts; results in the order of the prompts."""
        waiting = list(self._reqs)
        first: list[tuple[dict[int, torch.Tensor], torch.Tensor]] = []
        while waiting:
            first += self._extend_chunk(waiting)
            waiting = [req for req in waiting if req.prefix_len < len(req.origin_input_ids)]
        steps = [_cat([queries for queries, _ in first])]
        tokens = [torch.cat([token for _, token in first])]
        for _ in range(self._lookahead - 1):
            queries, token = self._decode(tokens[-1])
            steps.append(queries)
            tokens.append(token)
        return self._collect(steps, tokens)

    def _extend_chunk(self, waiting: list[Req]) -> list[tuple[dict[int, torch.Tensor], torch.Tensor]]:
        """One extend forward over the next chunk of tokens; returns queries and next token of prompts that ended in it."""
        members, budget = [], self._chunk_tokens
        for req in waiting:
            if budget == 0:
                break
            req.extend_end = min(len(req.origin_input_ids), req.prefix_len + budget)
            budget -= req.extend_end - req.prefix_len
            members.append(req)
        batch = ScheduleBatch.init_new(
            reqs=members,
            req_to_token_pool=self._runner.req_to_token_pool,
            token_to_kv_pool_allocator=self._runner.token_to_kv_pool_allocator,
            tree_cache=self._tree_cache,
            model_config=self._runner.model_config,
            enable_overlap=False,
            spec_algorithm=SpeculativeAlgorithm.NONE,
        )
        batch.prepare_for_extend()
        batch.input_ids = batch.prefill_input_ids_cpu.to(batch.device, non_blocking=True)
        batch.prefill_input_ids_cpu = None
        ended = [i for i, req in enumerate(members) if req.extend_end == len(req.origin_input_ids)]
        last_rows = torch.tensor(batch.extend_lens).cumsum(0)[ended] - 1
        queries, tokens = self._forward(batch, last_rows.to(batch.device) if ended else None)
        for req in members:
            req.prefix_len = req.extend_end
        if not ended:
            return []
        batch.filter_batch(keep_indices=ended)
        if self._batch is None:
            self._batch = batch
        else:
            self._batch.merge_batch(batch)
        return [(queries, tokens[ended])]

    def _decode(self, tokens: torch.Tensor) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        assert self._batch is not None
        self._batch.input_ids = tokens
        self._batch.prepare_for_decode()
        return self._forward(self._batch, torch.arange(len(tokens), device=tokens.device))

    def _forward(self, batch: ScheduleBatch, rows: torch.Tensor | None) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        """Queries of the given rows by layer, and the greedy next token of every request, int64 [requests]."""
        forward_batch = ForwardBatch.init_new(batch, self._runner, return_hidden_states_before_norm=False)
        if rows is not None:
            self._capture.arm(rows)
        try:
            logits = self._runner.forward(forward_batch).logits_output.next_token_logits
        finally:
            queries = self._capture.disarm()
        return queries, logits.argmax(dim=-1)

    def _collect(self, steps: list[dict[int, torch.Tensor]], tokens: list[torch.Tensor]) -> list[DraftedPrompt]:
        """Sort the recorded steps by prompt and leave out queries after the end of sequence."""
        assert self._batch is not None
        votes = _votes(torch.stack(tokens[:-1]).cpu() if len(tokens) > 1 else None, self._eos_ids, len(self._reqs))
        by_layer = {layer: torch.stack([step[layer] for step in steps]) for layer in steps[0]}
        row_of = {req.rid: row for row, req in enumerate(self._batch.reqs)}
        drafted = []
        for req in self._reqs:
            row = row_of[req.rid]
            queries = {layer: stacked[: votes[row], row] for layer, stacked in by_layer.items()}
            table = self._runner.req_to_token_pool.req_to_token[req.kv.req_pool_idx]
            drafted.append(DraftedPrompt(queries, table[: len(req.origin_input_ids)].long()))
        return drafted

    @property
    def _eos_ids(self) -> list[int]:
        return sorted(self._runner.model_config.hf_eos_token_id or ())


def _draft_req(index: int, ids: array) -> Req:
    params = SamplingParams(temperature=0, max_new_tokens=1)
    params.normalize(None)
    req = Req(rid=str(index), origin_input_text="", origin_input_ids=ids, sampling_params=params)
    req.full_untruncated_fill_ids, req.logprob_start_len = ids, -1
    return req


def _cat(parts: list[dict[int, torch.Tensor]]) -> dict[int, torch.Tensor]:
    return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}


def _votes(generated: torch.Tensor | None, eos_ids: list[int], n_prompts: int) -> list[int]:
    """Queries that count per prompt: those up to and including the first generated end-of-sequence token's.

    `generated` is int64 [lookahead - 1, prompts], the tokens that were fed back (algorithm.md, 1).
    """
    if generated is None:
        return [1] * n_prompts
    ended = torch.isin(generated, torch.tensor(eos_ids, dtype=generated.dtype)).int()
    before = ended.cumsum(0) - ended  # end-of-sequence tokens strictly before each fed-back token
    return (1 + (before == 0).sum(0)).tolist()
