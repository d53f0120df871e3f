"""A group of prompts on its way through the draft: steps, then votes."""

from collections.abc import Sequence

import torch

from specprefill_sgl.draft.model import DraftModel
from specprefill_sgl.draft.voting import votes_of
from specprefill_sgl.prompts import Prompt


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

    @property
    def has_read(self) -> bool:
        """Whether the next step is the lookahead."""
        return self._group.has_read

    def step(self) -> bool:
        """One forward; whether all prompts are drafted."""
        return self._group.step()

    def cancel(self, index: int) -> None:
        """A prompt that is not wanted any more: its votes will be None."""
        self._group.cancel(index)

    def votes(self) -> list[torch.Tensor | None]:
        """After the last step: float32 [votes, prompt_tokens] per prompt, over this rank's heads and all voting layers."""
        drafted = self._group.drafted()
        found = iter(votes_of(self._draft, [one for one in drafted if one is not None]))
        return [None if one is None else next(found) for one in drafted]

    def release(self) -> None:
        """Give back what the group holds."""
        self._group.release()
