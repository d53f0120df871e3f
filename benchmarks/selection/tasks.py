"""The tasks of the selection bench by name, the family of each, and their examples."""

from collections.abc import Callable
from random import Random

from benchmarks.selection import needles, paragraphs, patterns, prose, ruler, source_code
from benchmarks.selection.examples import LENGTHS as LENGTHS
from benchmarks.selection.examples import SPLITS as SPLITS
from benchmarks.selection.examples import Example, Prompt, Setting, assemble

_MAKE: dict[str, tuple[str, Callable[[Setting], Prompt]]] = {
    "needle": ("retrieval", needles.needle),
    "multi_key": ("retrieval", needles.multi_key),
    "multi_query": ("retrieval", needles.multi_query),
    "variables": ("tracing", needles.variables),
    "cloze": ("quotation", prose.cloze),
    "squad": ("question answering", paragraphs.squad),
    "squad2": ("question answering", paragraphs.squad2),
    "facts": ("question answering", needles.facts),
    "fewshot": ("patterns", patterns.fewshot),
    "code": ("code", source_code.code),
    "prose": ("continuation", prose.continuation),
    "votes": ("aggregation", needles.votes),
    "ruler_vt": ("tracing", ruler.variable_tracking),
    "ruler_fwe": ("aggregation", ruler.frequent_words),
}
TASKS = tuple(_MAKE)
FAMILY = {task: family for task, (family, _) in _MAKE.items()}
NAMED = frozenset(TASKS) - {"fewshot", "prose", "votes", "ruler_fwe"}  # the question names what it wants


def available(task: str) -> str | None:
    """Nothing if examples of a task can be made here, else one sentence that says why not."""
    reasons = {"squad": paragraphs.missing, "squad2": paragraphs.missing, "ruler_vt": ruler.missing, "ruler_fwe": ruler.missing}
    return reasons[task]() if task in reasons else None


def example(task: str, number: int, length: int, tokenizer, split: str) -> Example:
    """One example of a task; the same arguments give the same example.

    Parameters
    ----------
    task : str
        One of `TASKS`.
    number : int
        Which of the endless examples of this task, length and split.
    length : int
        Tokens of the prompt: it has at most these and at least nine tenths of them; 1,024 or more (`LENGTHS` are measured).
    tokenizer
        A fast tokenizer of transformers with a chat template.
    split : str
        One of `SPLITS`: they share no random numbers, words, names, prose, paragraphs or modules.

    Raises
    ------
    ValueError
        An unknown task or split, or a task that cannot be made here (`available` says why).
    """
    if task not in _MAKE or split not in SPLITS:
        raise ValueError(f"no task {task!r} in split {split!r}: tasks are {', '.join(TASKS)}, splits {', '.join(SPLITS)}")
    if reason := available(task):
        raise ValueError(reason)
    setting = Setting(Random(f"selection/{split}/{task}/{length}/{number}"), split, length, tokenizer)
    return assemble(task, number, split, setting, _MAKE[task][1](setting))
