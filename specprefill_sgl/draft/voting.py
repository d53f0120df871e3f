"""Votes of drafted prompts (README, What is computed, 2 to 4): by Triton kernels on a GPU, by plain torch elsewhere."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from specprefill_sgl.draft.group import DraftedPrompt
from specprefill_sgl.scoring.packed import PackedPrompts, pack
from specprefill_sgl.scoring.torch_scoring import layer_votes, max_votes
from specprefill_sgl.scoring.triton_scoring import accumulate_votes, kernels_can


class Drafted(Protocol):
    """What is read of a `DraftModel`: the configuration, the layers that vote on a prompt by number, their sinks and keys."""

    config: Any

    @property
    def device(self) -> torch.device: ...
    def voting_layers(self, prompt_tokens: int) -> dict[int, Any]: ...
    def sinks(self, number: int) -> torch.Tensor | None: ...
    def keys(self, layer: Any) -> torch.Tensor: ...
    def slots(self, layer: Any, slots: torch.Tensor) -> torch.Tensor: ...


def votes_of(draft: Drafted, prompts: Sequence[DraftedPrompt]) -> list[torch.Tensor]:
    """Pooled attention onto each prompt, max over this rank's heads and all voting layers.

    Returns
    -------
    list of float32 [votes, prompt_tokens]
        `votes` as many as the prompt's queries.
    """
    if not prompts:
        return []
    if draft.device.type == "cuda" and kernels_can(draft.config.pool_kernel, _head_dim(prompts)):
        return kernel_votes(draft, prompts)
    return torch_votes(draft, prompts)


def torch_votes(draft: Drafted, prompts: Sequence[DraftedPrompt]) -> list[torch.Tensor]:
    """One prompt, one layer at a time."""
    return [
        max_votes(
            layer_votes(
                prompt.queries[number],
                draft.keys(layer)[draft.slots(layer, prompt.slots)],
                scaling=layer.scaling,
                logit_cap=layer.logit_cap,
                pool_kernel=draft.config.pool_kernel,
                sinks=draft.sinks(number),
            )
            for number, layer in draft.voting_layers(len(prompt.slots)).items()
        )
        for prompt in prompts
    ]


def kernel_votes(draft: Drafted, prompts: Sequence[DraftedPrompt]) -> list[torch.Tensor]:
    """Two kernels a layer for all prompts together; keys are read where they lie."""
    lengths, n_votes = [len(prompt.slots) for prompt in prompts], [prompt.n_votes for prompt in prompts]
    packed = pack([prompt.slots for prompt in prompts], n_votes)
    layers = [draft.voting_layers(length) for length in lengths]
    out = torch.zeros(max(n_votes), sum(lengths), dtype=torch.float32, device=packed.slots.device)
    for number, layer in {number: layer for voting in layers for number, layer in voting.items()}.items():
        accumulate_votes(
            out,
            pad_sequence([prompt.queries[number] for prompt in prompts], batch_first=True),
            draft.keys(layer),
            _voting(packed._replace(slots=draft.slots(layer, packed.slots)), [number in voting for voting in layers]),
            scaling=layer.scaling,
            logit_cap=layer.logit_cap,
            pool_kernel=draft.config.pool_kernel,
            sinks=draft.sinks(number),
        )
    # contiguous, for the ranks to reduce
    return [votes[:n].contiguous() for votes, n in zip(out.split(lengths, dim=1), n_votes, strict=True)]


def _head_dim(prompts: Sequence[DraftedPrompt]) -> int:
    return max(queries.shape[-1] for queries in prompts[0].queries.values())


def _voting(packed: PackedPrompts, votes: list[bool]) -> PackedPrompts:
    """The same prompts, without those on which a layer does not vote."""
    if all(votes):
        return packed
    wanted = torch.tensor(votes, device=packed.n_votes.device)
    return PackedPrompts(
        slots=packed.slots, starts=packed.starts, n_votes=packed.n_votes * wanted, max_tokens=packed.max_tokens
    )
