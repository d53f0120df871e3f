"""How much of a prompt its reader reads again: as many tokens at the end as vote, whoever is read beside it."""

from array import array

import pytest

from specprefill_sgl.models.group import PromptReq
from specprefill_sgl.request.prompts import Prompt
from specprefill_sgl.selection.rule import Rule

TOKENS, ANSWER, CHUNK = 600, 40, 512


def _req(window=0, **more):
    ids = array("q", range(3, 3 + TOKENS))
    return PromptReq(0, Prompt(ids=ids, keep_ratio=0.2, rule=Rule(window=window), **more), CHUNK)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(("fresh", "cached"), [(1, 639), (3, 637), (40, 600), (200, 440), (513, 128)])
def test_of_an_answer_what_did_not_vote_yet(fresh, cached):
    req = _req(answer=array("q", range(ANSWER)), fresh=fresh)
    assert (len(req.origin_input_ids), req.prompt_tokens) == (TOKENS + ANSWER, TOKENS)
    assert req._compute_max_prefix_len(TOKENS + ANSWER) == cached


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(("window", "cached"), [(0, 599), (48, 552), (9999, 88)])
def test_of_a_prompt_its_window(window, cached):
    assert _req(window)._compute_max_prefix_len(TOKENS) == cached
