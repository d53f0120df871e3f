"""What was kept of earlier prompts: asked again, or continued by a next turn, they are not selected from anew.

A prompt continues an earlier one if that one's whole prompt *and* its answer are its beginning. Then everything the earlier
turn prefilled is in SGLang's radix cache under the same coded ids, so keeping it costs nothing.
"""

from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable

import msgspec
import numpy as np

BLOCK = 64  # tokens per link of the hash chain
MAX_TOKENS = 1 << 22  # remembered ids, positions and answers, 32 MiB
MAX_TURNS = 4096
MAX_ANSWERS = 4  # of one prompt
_REVIVED = "revived"  # settings that no request has: the same prompt again is selected from as it was at first


class Turn(msgspec.Struct, kw_only=True, eq=False):
    """One prompt: sparse, or a whole one of a hybrid target, whose cache ends before the answer does.

    Attributes
    ----------
    ids : array('q') [prompt_tokens]
        The prompt as it arrived.
    positions : int64 [kept_tokens] or None
        Kept positions in the order they are prefilled; None: the prompt was prefilled whole.
    settings : tuple
        What the selection depended on besides the prompt.
    namespace : tuple
        What separates prefix caches (SGLang's `extra_key` and `cache_salt`): turns of another are never seen.
    scores : float32 [chunks] or None
        What the positions were selected by.
    answers : list of array('q')
        Generated ids, each once it is final; nothing of aborted requests.
    """

    ids: array
    positions: np.ndarray | None
    settings: tuple
    namespace: tuple = ()
    scores: np.ndarray | None = None
    answers: list[array] = msgspec.field(default_factory=list)

    @property
    def is_revived(self) -> bool:
        """Whether something returned while it was answered."""
        return self.settings[:1] == (_REVIVED,)

    def revived(self, positions: np.ndarray) -> "Turn":
        """The turn with what returned. Its positions tell it apart: two answers to one prompt may ask for different tokens."""
        settings = (_REVIVED, hash(positions.tobytes()))
        return Turn(ids=self.ids, positions=positions, settings=settings, namespace=self.namespace)

    @property
    def size(self) -> int:
        """Numbers it holds."""
        arrays = (self.positions, self.scores)
        return len(self.ids) + sum(len(one) for one in arrays if one is not None) + sum(map(len, self.answers))

    def end_in(self, ids: array) -> int:
        """Where an answer to this prompt ends in longer `ids`; its last token may be missing there. 0: there is none."""
        start = len(self.ids)
        beginnings = [answer[:n] for answer in self.answers for n in (len(answer), len(answer) - 1) if n]
        ends = (start + len(one) for one in beginnings if ids[start : start + len(one)] == one)
        return max((end for end in ends if end < len(ids)), default=0)


class Turns:
    """Bounded, least recently used out first. Found by a chain of hashes over blocks of ids; ids are always compared too.

    Parameters
    ----------
    link : callable
        The next hash of the chain, from the one before and a block's bytes.
    """

    def __init__(self, link: Callable[[int, bytes], int] = lambda before, block: hash((before, block))):
        self._link = link
        self._turns: OrderedDict[int, Turn] = OrderedDict()  # by identity, least recently used first
        self._of_prompt: dict[int, list[Turn]] = {}  # by the hash of all ids
        self._lengths: dict[int, Counter[int]] = {}  # of prompts, by the hash of their whole blocks
        self._size = 0

    def add(self, turn: Turn) -> Turn:
        """Remember a turn; the known one, with its answers, if it is the same, else it takes the place of one alike."""
        chain = self._chain(turn.ids, turn.namespace)
        if not chain:
            return turn
        alike = self._find(chain, turn.ids, turn.namespace, turn.settings)
        if alike is not None and np.array_equal(alike.positions, turn.positions):
            return alike
        if alike is not None:
            self._remove(alike)
        self._turns[id(turn)] = turn
        self._of_prompt.setdefault(self._whole(chain, turn.ids), []).append(turn)
        self._lengths.setdefault(chain[-1], Counter())[len(turn.ids)] += 1
        self._size += turn.size
        self._shrink()
        return turn

    def add_answer(self, turn: Turn, answer: array) -> None:
        """Remember how a turn's prompt was answered, the latest `MAX_ANSWERS` times."""
        known = id(turn) in self._turns
        self._size -= turn.size if known else 0
        if answer not in turn.answers:
            turn.answers = [*turn.answers, answer][-MAX_ANSWERS:]
        self._size += turn.size if known else 0
        self._shrink()

    def repeated(self, ids: array, settings: tuple, namespace: tuple = ()) -> Turn | None:
        """The turn of the very same prompt with the same settings."""
        return self._find(self._chain(ids, namespace), ids, namespace, settings)

    def continued(self, ids: array, namespace: tuple = ()) -> tuple[Turn, int] | None:
        """The longest turn whose prompt and answer begin `ids`, and how many tokens prompt and answer are together."""
        if not self._turns:
            return None  # nothing to hash a long prompt for
        chain = self._chain(ids, namespace)
        for blocks in range(len(chain), 0, -1):
            lengths = [length for length in self._lengths.get(chain[blocks - 1], ()) if length < len(ids)]
            turns = [turn for length in lengths for turn in self._same(chain[:blocks], ids[:length], namespace)]
            end, turn = max(((turn.end_in(ids), turn) for turn in turns), key=lambda pair: pair[0], default=(0, None))
            if turn is not None and end:
                self._turns.move_to_end(id(turn))
                return turn, end
        return None

    def __len__(self) -> int:
        return len(self._turns)

    def forget(self, ids: array, namespace: tuple = ()) -> None:
        """All turns of exactly this prompt."""
        for turn in self._same(self._chain(ids, namespace), ids, namespace):
            self._remove(turn)

    def discard(self, turn: Turn) -> None:
        """A turn, unless it was answered."""
        if id(turn) in self._turns and not turn.answers:
            self._remove(turn)

    def clear(self) -> None:
        """Forget everything."""
        self._turns.clear()
        self._of_prompt.clear()
        self._lengths.clear()
        self._size = 0

    def _shrink(self) -> None:
        while self._size > MAX_TOKENS or len(self._turns) > MAX_TURNS:
            self._remove(next(iter(self._turns.values())))

    def _same(self, chain: list[int], ids: array, namespace: tuple) -> list[Turn]:
        """Turns of exactly this prompt, whose whole blocks have this chain; a prompt without any is never remembered."""
        if not chain:
            return []
        known = self._of_prompt.get(self._whole(chain, ids), ())
        return [turn for turn in known if turn.ids == ids and turn.namespace == namespace]

    def _find(self, chain: list[int], ids: array, namespace: tuple, settings: tuple) -> Turn | None:
        found = next((turn for turn in self._same(chain, ids, namespace) if turn.settings == settings), None)
        if found is not None:
            self._turns.move_to_end(id(found))
        return found

    def _remove(self, turn: Turn) -> None:
        chain = self._chain(turn.ids, turn.namespace)
        del self._turns[id(turn)]
        self._size -= turn.size
        _take(self._of_prompt, self._whole(chain, turn.ids), lambda turns: [one for one in turns if one is not turn])
        _take(self._lengths, chain[-1], lambda lengths: lengths - Counter([len(turn.ids)]))

    def _chain(self, ids: array, namespace: tuple) -> list[int]:
        """A hash per whole block, of the namespace and everything up to the block's end."""
        data, width = ids.tobytes(), BLOCK * ids.itemsize
        chain, before = [], self._link(0, repr(namespace).encode())
        for start in range(0, len(data) - width + 1, width):
            before = self._link(before, data[start : start + width])
            chain.append(before)
        return chain

    def _whole(self, chain: list[int], ids: array) -> int:
        """The hash of all ids: the chain of their whole blocks, and the rest."""
        return self._link(chain[-1], ids[len(chain) * BLOCK :].tobytes())


def _take(table: dict, key: int, without: Callable) -> None:
    """Replace an entry by what remains of it, if anything does."""
    if rest := without(table[key]):
        table[key] = rest
    else:
        del table[key]
