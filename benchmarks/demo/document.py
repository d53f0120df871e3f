"""A real document of some thousand tokens and a question about it."""

import inspect
import tarfile

QUESTION = "\n\nQuestion: which function of this module tells whether a file is a tar archive that can be read?\nAnswer:"


def document(tokenizer, tokens: int) -> str:
    """The source of Python's `tarfile` module, its docstrings and comments included, cut to a number of tokens."""
    ids = tokenizer.encode(inspect.getsource(tarfile), add_special_tokens=False)
    return tokenizer.decode(ids[:tokens])
