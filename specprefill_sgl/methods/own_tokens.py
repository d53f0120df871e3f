"""Ids of one tokenizer as ids of another, by way of the text, with the characters each stands for."""

import functools
import itertools
import time
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from specprefill_sgl.request.reading import Reading

_PARTIAL = "\ufffd"  # what a tokenizer writes for bytes that are no whole character
_MOST_PARTS = 8  # ids that are joined to make a character


class UnreadableError(ValueError):
    """An id without text."""


class Spelled(NamedTuple):
    """Ids as text.

    Attributes
    ----------
    text : str
    begin, end : int64 [ids]
        The characters each id stands for; those of an id that is a part of a character are the whole character.
    """

    text: str
    begin: np.ndarray
    end: np.ndarray


class Speller:
    """Text of ids, id by id. Texts are remembered, so that a long prompt costs a look-up for each id.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Fast or not.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        if not (anchor := tokenizer.encode("a", add_special_tokens=False)):
            raise UnreadableError("the tokenizer has no token for a letter")
        self._anchor = anchor[-1]  # before it the first id loses its space
        self._before = len(self._decode([self._anchor]))
        self._of = functools.lru_cache(maxsize=2**18)(self._text)

    def spell(self, ids: Sequence[int]) -> Spelled:
        """Text and the characters of each id.

        Raises
        ------
        UnreadableError
            If the tokenizer does not know an id.
        """
        texts, joined, at = [], [], 0  # joined: (first, past) of ids that share their characters
        while at < len(ids):
            size, text = 1, self._of(ids[at])
            while text.endswith(_PARTIAL) and size < min(_MOST_PARTS, len(ids) - at):
                size += 1
                text = self._of(*ids[at : at + size])
            texts += [text, *[""] * (size - 1)]
            if size > 1:
                joined.append((at, at + size))
            at += size
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        end = lengths.cumsum()
        begin = end - lengths
        for first, past in joined:
            begin[first:past], end[first:past] = begin[first], end[first]
        return Spelled("".join(texts), begin, end)

    def _text(self, *ids: int) -> str:
        try:
            lacking = [one for one in ids if self._tokenizer.convert_ids_to_tokens(one) is None]
            text = self._decode([self._anchor, *ids])
        except (LookupError, ValueError, OverflowError) as error:  # of ids it lacks; a fast tokenizer says None
            raise UnreadableError(f"the tokenizer has no text for one of the ids {ids}: {error!r}") from error
        if lacking:
            raise UnreadableError(f"the tokenizer has no text for the id {lacking[0]}")
        return text[self._before :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


class OwnTokens:
    """Reads prompts of the target's ids with another tokenizer.

    Special tokens are not text. One that the reader has too, by its name, stays that one; any other is not read.

    Parameters
    ----------
    target, reader : PreTrainedTokenizerBase
        The reader's must be a fast one, which tells the characters of its tokens.
    """

    def __init__(self, target: Any, reader: Any):
        self._speller, self._reader = Speller(target), reader
        names = {token.content: one for one, token in reader.added_tokens_decoder.items() if token.special}
        self._special = {one: names.get(token) for one, token in _special_tokens(target).items()}
        self._start = [one for one in reader.encode("")[:1] if one == reader.bos_token_id]  # if it wants one

    def read(self, ids: Sequence[int]) -> Reading | None:
        """The prompt in the reader's tokens; None where there is nothing to read, or an id has no text."""
        began = time.perf_counter()
        ids = list(ids)
        cuts = [at for at, one in enumerate(ids) if one in self._special]
        edges = [-1, *cuts, len(ids)]
        try:
            parts = [self._speller.spell(ids[edge + 1 : after]) for edge, after in itertools.pairwise(edges)]
        except UnreadableError:
            return None
        encoded = self._reader(
            [part.text for part in parts],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            split_special_tokens=True,  # what is text to the target is text to the reader
            verbose=False,  # its own length limit is the stage's concern
        )
        begins = bool(cuts) and not parts[0].text and [self._special[ids[cuts[0]]]] == self._start
        found = _Joined([] if begins else self._start)
        for number, part in enumerate(parts):
            found.text(part, encoded["input_ids"][number], encoded["offset_mapping"][number])
            if number < len(cuts):
                found.special(self._special[ids[cuts[number]]])
        return found.reading([at for at in cuts if self._special[ids[at]] is None], began)


class _Joined:
    """Parts of a prompt one after the other on one axis of characters; a special token that is read is one character of it."""

    def __init__(self, start: list[int]):
        self._ids, self._length = list(start), 0
        nothing: np.ndarray = np.zeros(len(start), dtype=np.int64)
        self._target: list[tuple[np.ndarray, np.ndarray]] = []
        self._reader = [(nothing, nothing)]

    def text(self, part: Spelled, ids: list[int], offsets: list[tuple[int, int]]) -> None:
        """A part that both read."""
        spans = np.array(offsets, dtype=np.int64).reshape(-1, 2) + self._length
        self._ids += ids
        self._reader.append((spans[:, 0], spans[:, 1]))
        self._target.append((part.begin + self._length, part.end + self._length))
        self._length += len(part.text)

    def special(self, reads: int | None) -> None:
        """A special token of the target, and the reader's."""
        begin = np.array([self._length])
        self._length += reads is not None
        end = np.array([self._length])
        self._target.append((begin, end))
        if reads is not None:
            self._ids.append(reads)
            self._reader.append((begin, end))

    def reading(self, unread: list[int], began: float) -> Reading | None:
        """What overlaps what."""
        begin, end = (np.concatenate(ends) for ends in zip(*self._target, strict=True))
        read_begin, read_end = (np.concatenate(ends) for ends in zip(*self._reader, strict=True))
        if not read_end.any():
            return None
        read_begin[1:] = np.minimum(read_begin[1:], read_end[:-1])  # a space that no token says it has belongs to the next
        last = len(self._ids) - 1
        first = np.minimum(np.searchsorted(read_end, begin, side="right"), last)
        past = np.maximum(np.searchsorted(read_begin, end, side="left"), first + 1)
        return Reading(
            ids=array("q", self._ids),
            first=first,
            past=past,
            unread=_spans(unread),
            milliseconds=1e3 * (time.perf_counter() - began),
        )


def _spans(positions: list[int]) -> tuple[tuple[int, int], ...]:
    """(start, end) of runs of ascending positions."""
    spans: list[tuple[int, int]] = []
    for at in positions:
        if spans and spans[-1][1] == at:
            spans[-1] = (spans[-1][0], at + 1)
        else:
            spans.append((at, at + 1))
    return tuple(spans)


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    """Ids that are not text, and their names."""
    added = {one: token.content for one, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return {**added, **{one: str(token) for one, token in named}}
