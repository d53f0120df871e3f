"""Drafts several prompts together: chunked extend, then lookahead decode, with SGLang's own batch and cache objects.

A group is drafted step by step, one forward each, so that the scheduler can decode in between. Requests are matched, locked,
published and released exactly as SGLang's scheduler does with its own, on the private model's radix cache.
"""

from collections.abc import Sequence

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache
from sglang.srt.mem_cache.common import checkpoint_kv_cache
from sglang.srt.model_executor.forward_batch_info import ForwardBatch

from specprefill_sgl.models.capture import QueryCapture
from specprefill_sgl.models.recording import Recording
from specprefill_sgl.models.runner import own_settings
from specprefill_sgl.models.unsent import UnsentReq, extend_batch, give_back
from specprefill_sgl.request.prompts import Prompt


class PromptGroup:
    """Prompts drafted in shared forwards. `release` must follow, whatever happened.

    Parameters
    ----------
    runner : ModelRunner
        The private model's, with pools large enough for all prompts and their lookahead.
    capture : QueryCapture
        The proxy installed as the runner's attention backend.
    tree : BasePrefixCache
        The prefix cache over those pools.
    prompts : sequence of Prompt
        With one rule, which says how many are decoded and how many prompt tokens vote, as far as one forward holds these.
    chunk_tokens : int
        Most prompt tokens in one forward; longer prompts are extended in chunks.

    Attributes
    ----------
    cached : list[int]
        Tokens of each prompt whose keys were there already; tokens that vote are always read, for their queries.
    """

    @own_settings()
    def __init__(
        self,
        runner,
        capture: QueryCapture,
        tree: BasePrefixCache,
        prompts: Sequence[Prompt],
        *,
        chunk_tokens: int,
    ):
        self._runner, self._capture, self._tree = runner, capture, tree
        self._rule, self._chunk_tokens = prompts[0].rule, chunk_tokens
        self._reqs = [PromptReq(index, prompt, chunk_tokens) for index, prompt in enumerate(prompts)]
        self._gone: set[str] = set()  # cancelled
        self._batch: ScheduleBatch | None = None  # prompts whose extend is done, ready to decode
        self._windows: dict[str, dict[int, torch.Tensor]] = {}  # queries of the last prompt tokens by layer, by request
        self._steps: list[dict[int, torch.Tensor]] = []  # queries by layer, rows as in the batch
        self._fed: list[torch.Tensor] = []  # what was decoded, and its queries recorded
        self._tokens = torch.empty(0, dtype=torch.int64, device=runner.device)  # the next one of each row
        self._votes: list[int] = []  # queries that count, of each row
        self._eos = torch.tensor(sorted(runner.model_config.hf_eos_token_id or ()), dtype=torch.int64, device=runner.device)
        for req in self._reqs:
            req.init_next_round_input(tree)
            req.lock = tree.lock(req.last_node)
        self.cached = [req.prefix_len for req in self._reqs]

    @own_settings()
    def step(self) -> bool:
        """One extend forward, or when all prompts are read the lookahead, if any; whether the group is drafted."""
        if waiting := self._waiting:
            self._extend_chunk(waiting)
            if self._waiting or self._rule.decodes:
                return False
        if self._batch is not None:
            self._look_ahead(self._batch)
        return True

    @property
    def has_read(self) -> bool:
        """Whether all prompts have been read, so that the next step is the lookahead."""
        return not self._waiting

    @property
    def _waiting(self) -> list["PromptReq"]:
        return [req for req in self._reqs if req.rid not in self._gone and req.prefix_len < len(req.origin_input_ids)]

    def cancel(self, index: int) -> None:
        """Leave a prompt out of the steps to come; what it has published stays cached."""
        self._gone.add(self._reqs[index].rid)

    def drafted(self) -> list[Recording | None]:
        """Results in the order of the prompts, after the last step; None for cancelled ones."""
        if self._batch is None:
            return [None] * len(self._reqs)
        row_of = {req.rid: row for row, req in enumerate(self._batch.reqs)}
        fed = torch.stack(self._fed).tolist() if self._fed else []
        return [None if req.rid in self._gone else self._drafted(req, row_of[req.rid], fed) for req in self._reqs]

    def _drafted(self, req: "PromptReq", row: int, fed: list[list[int]]) -> Recording:
        n_tokens, window = len(req.origin_input_ids), self._windows[req.rid]
        n_window = min(req.last, n_tokens, req.window)
        n_ahead = self._votes[row] if self._rule.lookahead_votes else 0
        queries = {
            layer: torch.cat([rows[len(rows) - n_window :], *(step[layer][row : row + 1] for step in self._steps[:n_ahead])])
            for layer, rows in window.items()
        }
        table = self._runner.req_to_token_pool.req_to_token[req.kv.req_pool_idx]
        positions = [*range(n_tokens - n_window, n_tokens), *range(n_tokens - 1, n_tokens - 1 + n_ahead)]
        ahead = [req.origin_input_ids[-1], *(step[row] for step in fed)]
        tokens = [*req.origin_input_ids[n_tokens - n_window :], *ahead[:n_ahead]]
        return Recording(queries, table[: req.prompt_tokens].long(), n_window, tokens, positions)

    @own_settings()
    def release(self) -> None:
        """Give back everything the prompts hold: rows, lookahead slots, states, locks. Their keys stay cached, evictable."""
        for req in self._reqs:
            give_back(req, self._tree)

    def _extend_chunk(self, waiting: list["PromptReq"]) -> None:
        """One extend forward over the next chunk of tokens; prompts that end in it join the batch that decodes."""
        members, budget = [], self._chunk_tokens
        for req in waiting:
            rest = len(req.origin_input_ids) - req.prefix_len
            part = rest if rest <= budget else min(budget, rest - req.last)
            if part <= 0:
                break
            req.extend_end = req.prefix_len + part
            budget -= part
            members.append(req)
        batch = extend_batch(members, self._runner, self._tree)
        batch.input_ids = batch.prefill_input_ids_cpu.to(batch.device, non_blocking=True)
        batch.prefill_input_ids_cpu = None
        ended = [i for i, req in enumerate(members) if req.extend_end == len(req.origin_input_ids)]
        ends = torch.tensor(batch.extend_lens).cumsum(0)
        sizes = [min(members[i].last, len(members[i].origin_input_ids)) for i in ended]
        rows = [torch.arange(ends[i] - size, ends[i]) for i, size in zip(ended, sizes, strict=True)]
        queries, tokens = self._forward(batch, torch.cat(rows).to(batch.device) if rows else None)
        for req in members:
            checkpoint_kv_cache(req, self._tree)
        if ended:
            own = {layer: taken.split(sizes) for layer, taken in queries.items()}
            for number, i in enumerate(ended):
                self._windows[members[i].rid] = {layer: parts[number] for layer, parts in own.items()}
            batch.filter_batch(keep_indices=ended)
            self._join(batch, {layer: torch.stack([part[-1] for part in parts]) for layer, parts in own.items()}, tokens[ended])

    def _join(self, batch: ScheduleBatch, queries: dict[int, torch.Tensor], tokens: torch.Tensor) -> None:
        if self._batch is None:
            self._batch, self._steps, self._tokens = batch, [queries], tokens
            return
        self._batch.merge_batch(batch)
        self._steps = [{layer: torch.cat([rows, queries[layer]]) for layer, rows in self._steps[0].items()}]
        self._tokens = torch.cat([self._tokens, tokens])

    def _look_ahead(self, batch: ScheduleBatch) -> None:
        """Greedy decodes while queries count: up to a prompt's first end of sequence (docs/selection.md, 1)."""
        votes = torch.ones_like(self._tokens)
        going = torch.ones_like(votes, dtype=torch.bool)
        rows = torch.arange(len(votes), device=votes.device)
        for _ in range(self._rule.decodes):
            fed = batch.input_ids = self._tokens
            batch.prepare_for_decode()
            self._fed.append(fed)
            queries, self._tokens = self._forward(batch, rows)
            self._steps.append(queries)
            votes += going
            going &= ~torch.isin(fed, self._eos)
            if not going.any():
                break
        self._votes = votes.tolist()

    def _forward(self, batch: ScheduleBatch, rows: torch.Tensor | None) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        """Queries of the given rows by layer, and the greedy next token of every request, int64 [requests].

        Without rows neither is wanted: the forward is for its keys.
        """
        forward_batch = ForwardBatch.init_new(batch, self._runner, return_hidden_states_before_norm=False)
        self._capture.arm(rows)
        try:
            output = self._runner.forward(forward_batch)
        finally:
            queries = self._capture.disarm()
        if output.can_run_graph:  # only decodes are captured, and of those all rows are wanted
            queries = self._capture.replayed(len(batch.reqs))
        return queries, output.logits_output.next_token_logits.argmax(dim=-1)


class PromptReq(UnsentReq):
    """A prompt as SGLang's request.

    Attributes
    ----------
    prompt_tokens : int
        Without the answer.
    window : int
        Last tokens that vote.
    last : int
        So many at the end are read in one forward, and never taken from the prefix cache: their queries are wanted. Of each
        prompt its own, or an answer of which few tokens vote would lose what is cached to one of which many do.
    """

    def __init__(self, index: int, prompt: Prompt, chunk_tokens: int):
        super().__init__(str(index), prompt.read_ids + prompt.answer, prompt.namespace)
        self.prompt_tokens, self.window = len(prompt.read_ids), prompt.window
        self.last = max(1, min(prompt.window, chunk_tokens))

    def _compute_max_prefix_len(self, input_len: int) -> int:
        return max(min(super()._compute_max_prefix_len(input_len), input_len - self.last), 0)
