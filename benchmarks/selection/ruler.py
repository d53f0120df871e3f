"""RULER (arXiv 2404.06654) through lm-eval's own generators: variable tracking and frequent words.

Its other tasks do not work offline: `niah` and `cwe` need packages and word lists that lm-eval does not bring, `qa` downloads
its documents. Variable tracking is without RULER's worked example, which would take half of a short prompt.
"""

import contextlib
import importlib.util
import random as global_random
from collections.abc import Iterator

import numpy as np

from benchmarks.selection.examples import Piece, Prompt, Setting

_HOPS = 4


def missing() -> str | None:
    """Why there are no tasks of RULER; nothing if there are."""
    if importlib.util.find_spec("lm_eval"):
        return None
    return "RULER's generators are lm-eval's: install the project with its extra `bench`"


def variable_tracking(setting: Setting) -> Prompt:
    """All five variables that hold a value, through a chain of four hops in repeated noise."""
    from lm_eval.tasks.ruler import vt_utils

    prefix = vt_utils.CONFIG["variable_tracking"]["answer_prefix"].format(num_v=_HOPS + 1, query="00000")
    room, seed = setting.room(), setting.random.getrandbits(32)

    def made(noises: int) -> tuple[str, list[str]]:
        with _seeded(seed):
            return vt_utils.generate_input_output(noises, 1, _HOPS)

    noises = [setting.count(made(many)[0]) - setting.count(prefix) for many in (10, 20)]
    each = (noises[1] - noises[0]) / 10
    whole, names = made(10 + int((room - noises[0]) / each))
    prompt, answer = _parts(whole)
    body, question = prompt.rsplit("\n", 1)
    chain = [one for name in names for one in _assignments(body, name)]
    return Prompt(body, question, [Piece(answer), Piece(" " + " ".join(names), judged=True)], chain, between="\n")


def frequent_words(setting: Setting) -> Prompt:
    """The three most frequent of many coded words."""
    from lm_eval.tasks.ruler import fwe_utils

    room = setting.room() + setting.count(fwe_utils.CONFIG["answer_prefix"])
    with _seeded(setting.random.getrandbits(32)):
        whole, names, _ = fwe_utils.generate_input_output(
            room, setting.tokenizer, vocab_size=setting.length // 50, incremental=max(1, room // 200)
        )
    prompt, answer = _parts(whole)
    body, question = prompt.rsplit("\n", 1)
    return Prompt(body, question, [Piece(answer), Piece(" " + " ".join(names), judged=True)], [], between="\n")


def _parts(whole: str) -> tuple[str, str]:
    """The user's message and the beginning of the answer."""
    at = whole.rindex(" Answer: According to")
    return whole[:at].strip(), whole[at:].strip()


def _assignments(body: str, name: str) -> list[str]:
    """The statement that gives a variable its value, without the blank that may follow it."""
    start = body.index(f"VAR {name} =")
    words = body[start:].split()
    return [" ".join(words[: 5 if words[3] == "VAR" else 4])]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The generators draw from the process's random numbers: seeded here and put back afterwards."""
    before, numpy_before = global_random.getstate(), np.random.get_state()
    global_random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        global_random.setstate(before)
        np.random.set_state(numpy_before)
