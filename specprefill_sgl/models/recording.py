"""What a model has recorded of one prompt. Nothing of SGLang: whoever else reads prompts can say it too."""

import torch


class Recording:
    """One drafted prompt: where its keys are and which queries vote, those of the window first.

    Attributes
    ----------
    queries : dict[int, Tensor]
        Number of a layer (`QueryCapture`) -> [votes, heads, head_dim] on the device.
    slots : int64 [prompt_tokens]
        KV slots of the prompt in its pool, valid until the group is released.
    n_window : int
        Votes of the window.
    tokens, positions : list of int
        Ids and positions of the queries' tokens; from `prompt_tokens` on they were decoded.
    """

    def __init__(
        self, queries: dict[int, torch.Tensor], slots: torch.Tensor, n_window: int, tokens: list[int], positions: list[int]
    ):
        self.queries, self.slots, self.n_window, self.tokens, self.positions = queries, slots, n_window, tokens, positions

    @property
    def visible(self) -> list[int]:
        """Tokens of the prompt that each query sees."""
        return [min(position + 1, len(self.slots)) for position in self.positions]

    @property
    def read_tokens(self) -> int:
        """The prompt and what of its answer was read: what a layer must look back on to see the whole prompt."""
        return max(self.positions[: self.n_window + 1]) + 1
