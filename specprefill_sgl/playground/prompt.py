"""A prompt's tokens, and the text that each of them stands for."""

from typing import Any, NamedTuple


class Prompt(NamedTuple):
    """A prompt as the server gets it.

    Attributes
    ----------
    ids : list of int
    ends : list of int or None
        Where each token's text ends, in characters; None where the tokenizer does not say.
    text : str
    decode : callable
        Of ids, their text.
    """

    ids: list[int]
    ends: list[int] | None
    text: str
    decode: Any

    def pieces(self, size: int) -> list[str]:
        """The text of every `size` tokens.

        Together they are the prompt, where the tokenizer knows its characters: one that two chunks share is in the first.
        """
        starts = range(0, len(self.ids), size)
        if self.ends is None:
            return [self.decode(self.ids[start : start + size]) for start in starts]
        found, begin = [], 0
        for start in starts:
            end = max(begin, *self.ends[start : start + size])
            found.append(self.text[begin:end])
            begin = end
        return found


def read(tokenizer: Any, text: str, *, special: bool = True) -> Prompt:
    """The tokens of a text; `special`: with those that the tokenizer puts at its beginning."""
    found = tokenizer(text, add_special_tokens=special, return_offsets_mapping=tokenizer.is_fast)
    ends = [end for _, end in found["offset_mapping"]] if tokenizer.is_fast else None
    return Prompt(list(found["input_ids"]), ends, text, tokenizer.decode)


def compose(tokenizer: Any, document: str, question: str, *, chat: bool) -> Prompt:
    """A document and a question about it; `chat`: as a user's message, in the model's chat template."""
    text = "\n\n".join(part for part in (document, question) if part)
    if not chat:
        return read(tokenizer, text)
    message = {"role": "user", "content": text}
    return read(tokenizer, tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True), special=False)
