"""A group of prompts on its way through a private model: steps, then votes."""

from collections.abc import Sequence

from specprefill_sgl.models.private import PrivateModel
from specprefill_sgl.models.ranks import Ranks
from specprefill_sgl.request.prompts import Cast, Prompt
from specprefill_sgl.scoring.overlap import over_target
from specprefill_sgl.scoring.voting import own_heads, votes_of


class ModelPass:
    """Drives a group of prompts and turns what it recorded into votes; see `methods.protocol.Pass`.

    Parameters
    ----------
    model : PrivateModel
    prompts : sequence of Prompt
        With one rule.
    ranks : Ranks
        That the model's heads are split over.
    """

    def __init__(self, model: PrivateModel, prompts: Sequence[Prompt], ranks: Ranks):
        self._model, self._prompts, self._ranks, self._rule = model, prompts, ranks, prompts[0].rule
        self._group = model.begin(prompts)
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

    def votes(self) -> list[Cast | None]:
        """After the last step, of each prompt: over this rank's heads, as the rule says; `joined` makes them all ranks'."""
        drafted = self._group.drafted()
        wanted = [(prompt, one) for prompt, one in zip(self._prompts, drafted, strict=True) if one is not None]
        heads = None if self._rule.heads is None else own_heads(self._rule.heads, self._ranks.rank, self._model.heads_of)
        found = votes_of(
            self._model,
            [one for _, one in wanted],
            pool_kernel=self._rule.pool_kernel,
            counted=[prompt.counted for prompt, _ in wanted],
            heads=heads,
        )
        each = (
            Cast(votes, one.n_window, one.tokens, one.positions, prompt.reading)
            for votes, (prompt, one) in zip(found, wanted, strict=True)
        )
        return [None if one is None else next(each) for one in drafted]

    def joined(self, cast: Cast) -> Cast:
        """Over the heads of all ranks: the maximum, or the mean of those that count; then over the target's tokens."""
        if self._rule.heads is None:
            votes = self._ranks.maximum(cast.votes)
        else:
            votes = self._ranks.total(cast.votes) / len(self._rule.heads)
        return over_target(cast._replace(votes=votes))

    def release(self) -> None:
        """Give back what the group holds."""
        self._group.release()
