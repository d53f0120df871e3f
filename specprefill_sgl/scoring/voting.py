"""Votes of drafted prompts (docs/selection.md, 2 to 4): by Triton kernels on a GPU, by plain torch elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from specprefill_sgl.models.recording import Recording
from specprefill_sgl.scoring.packed import pack
from specprefill_sgl.scoring.torch_scoring import layer_votes, max_votes
from specprefill_sgl.scoring.triton_scoring import accumulate_votes, kernels_can
from specprefill_sgl.selection.rule import Heads

LayerHeads = Mapping[int, Sequence[int]]
Counted = Sequence[tuple[int, int]]


class VotingModel(Protocol):
    """What is read of a `PrivateModel`: the layers that vote on what was read by number, their sinks and keys."""

    @property
    def device(self) -> torch.device: ...
    def voting_layers(self, read_tokens: int) -> dict[int, Any]: ...
    def sinks(self, number: int) -> torch.Tensor | None: ...
    def keys(self, layer: Any) -> torch.Tensor: ...
    def slots(self, layer: Any, slots: torch.Tensor) -> torch.Tensor: ...


def votes_of(
    model: VotingModel, prompts: Sequence[Recording], *, pool_kernel: int, counted: Counted, heads: LayerHeads | None
) -> list[torch.Tensor]:
    """Pooled attention onto each prompt, of this rank.

    Parameters
    ----------
    model : VotingModel
    prompts : sequence of Recording
    pool_kernel : int
        Width of the pooling.
    counted : sequence of (begin, end)
        Of each prompt, the tokens on which attention counts.
    heads : mapping or None
        Number of a layer -> its heads that vote; None: all of all layers.

    Returns
    -------
    list of float32 [votes, prompt_tokens]
        `votes` as many as the prompt's queries. The maximum over layers and heads, or the sum over the given heads.
    """
    if not prompts:
        return []
    on_kernels = model.device.type == "cuda" and kernels_can(pool_kernel, _head_dim(prompts))
    return (kernel_votes if on_kernels else torch_votes)(model, prompts, pool_kernel, counted, heads)


def torch_votes(
    model: VotingModel, prompts: Sequence[Recording], pool_kernel: int, counted: Counted, heads: LayerHeads | None
) -> list[torch.Tensor]:
    """One prompt, one layer at a time."""
    found = []
    for prompt, tokens in zip(prompts, counted, strict=True):
        layers, visible = model.voting_layers(prompt.read_tokens), torch.tensor(prompt.visible, device=prompt.slots.device)
        each = (
            layer_votes(
                prompt.queries[number],
                model.keys(layer)[model.slots(layer, prompt.slots)],
                scaling=layer.scaling,
                logit_cap=layer.logit_cap,
                pool_kernel=pool_kernel,
                sinks=model.sinks(number),
                visible=visible,
                counted=tokens,
                heads=None if heads is None else heads[number],
            )
            for number, layer in layers.items()
            if heads is None or number in heads
        )
        if heads is None:
            found.append(max_votes(each))
        else:
            nothing = torch.zeros(len(visible), len(prompt.slots), device=prompt.slots.device)
            found.append(sum(each, start=nothing))
    return found


def kernel_votes(
    model: VotingModel, prompts: Sequence[Recording], pool_kernel: int, counted: Counted, heads: LayerHeads | None
) -> list[torch.Tensor]:
    """Two kernels a layer for all prompts together; keys are read where they lie."""
    lengths, n_votes = [len(prompt.slots) for prompt in prompts], [len(prompt.visible) for prompt in prompts]
    packed = pack([prompt.slots for prompt in prompts], [prompt.visible for prompt in prompts], counted)
    voting = [model.voting_layers(prompt.read_tokens) for prompt in prompts]
    layers = {number: layer for own in voting for number, layer in own.items() if heads is None or number in heads}
    votes = [[number in own for own in voting] for number in layers]
    votes_of_layers = torch.tensor(votes, dtype=torch.bool, device=packed.slots.device)  # one copy: a copy waits for the device
    out = torch.zeros(max(n_votes), sum(lengths), dtype=torch.float32, device=packed.slots.device)
    for row, (number, layer) in enumerate(layers.items()):
        visible = packed.visible if all(votes[row]) else packed.visible * votes_of_layers[row, :, None]
        accumulate_votes(
            out,
            pad_sequence([prompt.queries[number] for prompt in prompts], batch_first=True),
            model.keys(layer),
            packed._replace(slots=model.slots(layer, packed.slots), visible=visible),
            scaling=layer.scaling,
            logit_cap=layer.logit_cap,
            pool_kernel=pool_kernel,
            sinks=model.sinks(number),
            heads=None if heads is None else heads[number],
        )
    # contiguous, for the ranks to reduce
    return [own[:n].contiguous() for own, n in zip(out.split(lengths, dim=1), n_votes, strict=True)]


def _head_dim(prompts: Sequence[Recording]) -> int:
    return max(queries.shape[-1] for queries in prompts[0].queries.values())


def own_heads(heads: Heads, rank: int, heads_of: Callable[[int], int]) -> dict[int, list[int]]:
    """Number of a layer -> those of its heads that a rank has, counted from its first; each has `heads_of(layer)` of them."""
    own: dict[int, list[int]] = {}
    for layer, head in heads:
        at = head - rank * heads_of(layer)
        if 0 <= at < heads_of(layer):
            own.setdefault(layer, []).append(at)
    return own
