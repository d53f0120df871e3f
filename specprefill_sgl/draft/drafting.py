"""A group of prompts on its way through the draft: steps, then votes."""

from collections.abc import Sequence

import torch

from specprefill_sgl.draft.group import DraftedPrompt
from specprefill_sgl.draft.model import DraftModel
from specprefill_sgl.prompts import Prompt
from specprefill_sgl.scoring.torch_scoring import layer_votes, max_votes


class Drafting:
    """Drives a draft group and turns what it recorded into votes. `release` must follow.

    Everything downstream needs of the draft: another source of votes, with these methods, is another selector.

    Parameters
    ----------
    draft : DraftModel
    prompts : sequence of Prompt
    """

    def __init__(self, draft: DraftModel, prompts: Sequence[Prompt]):
        self._draft = draft
        self._group = draft.begin(prompts)
        self.cached = self._group.cached

    def step(self) -> bool:
        """One forward; whether all prompts are drafted."""
        return self._group.step()

    def cancel(self, index: int) -> None:
        """A prompt that is not wanted any more: its votes will be None."""
        self._group.cancel(index)

    def votes(self) -> list[torch.Tensor | None]:
        """After the last step: float32 [votes, prompt_tokens] per prompt, over this rank's heads and all voting layers."""
        return [None if one is None else self._votes(one) for one in self._group.drafted()]

    def release(self) -> None:
        """Give back what the group holds."""
        self._group.release()

    def _votes(self, drafted: DraftedPrompt) -> torch.Tensor:
        layers = self._draft.voting_layers(len(drafted.slots))
        return max_votes(
            layer_votes(
                drafted.queries[layer_id],
                self._draft.keys(layer_id)[drafted.slots],
                scaling=layer.scaling,
                logit_cap=layer.logit_cap,
                pool_kernel=self._draft.config.pool_kernel,
            )
            for layer_id, layer in layers.items()
        )
