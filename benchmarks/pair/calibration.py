"""`python -m benchmarks.pair.calibration`: makes `heads.json`, the calibrated heads of the shipped draft.

The draft reads no questions but those it was trained on: prompts are the quality bench's tasks, in training prose and words.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from benchmarks import text
from benchmarks.quality import forms
from benchmarks.text import haystack

HERE = Path(__file__).parent
HEADS = HERE / "heads.json"
PROMPTS, TOKENS, MANY = 16, 1024, 2  # of each kind; of a prompt; heads: the draft has six


def main() -> None:
    from transformers import AutoTokenizer

    from specprefill_sgl.cli import calibrate

    tokenizer = AutoTokenizer.from_pretrained(HERE / "draft")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "pair_tasks.jsonl"
        rows = prompts(lambda piece: len(tokenizer.encode(piece, add_special_tokens=False)))
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        calibrate.main(
            [str(HERE / "draft"), "--out", str(HEADS), "--prompts", str(file), "--heads", str(MANY), "--dtype", "float32"]
        )


def prompts(count_tokens: Callable[[str], int]) -> Iterator[dict]:
    """The prompts of all kinds, as `calibrate --prompts` reads them; evidence are the statements that the answer is in."""
    words = text.lower_case_words(held_out=False)
    common = [word for word in words if count_tokens(" " + word) == 1]
    for kind in ("one key", "several keys", "variables", "people"):
        for number in range(PROMPTS):
            random = Random(f"calibration/{kind}/{number}")
            facts, evidence = _drawn(kind, random, random.sample(common if kind == "several keys" else words, 12))
            question = facts.questions[0][0]
            used = count_tokens("\n\n" + question) + sum(count_tokens(" " + one) for one in facts.statements)
            prose = haystack.prose(random, TOKENS - used, count_tokens, held_out=False)
            places = sorted(random.random() for _ in facts.statements)
            body = " ".join(haystack.hidden(prose, facts.statements, places))
            yield {"kind": kind, "prompt": f"{body}\n\n{question}", "evidence": evidence}


def _drawn(kind: str, random: Random, words: list[str]) -> tuple[forms.Facts, list[str]]:
    """Statements with one question, and those of them that answer it."""
    if kind == "variables":
        chains = [forms.variables(random, words[:3]), forms.variables(random, words[3:6])]
        placed = [
            (at, one)
            for chain in chains
            for at, one in zip(sorted(random.random() for _ in chain.statements), chain.statements, strict=True)
        ]
        return forms.Facts([one for _, one in sorted(placed)], chains[0].questions), chains[0].statements
    if kind == "people":
        facts = forms.people(random, words, 1)
        return facts, [one for one in facts.statements if one.startswith(facts.questions[0][0] + " ")]
    facts = forms.pass_keys(random, words[:8], 1) if kind == "one key" else forms.many_queries(random, words[:8], 3)
    asked = re.findall(r"\w+", facts.questions[0][0].partition(" for ")[2])
    return facts, [one for one in facts.statements if one.split()[4] in asked]  # The pass key for WORD is ...


if __name__ == "__main__":
    main()
