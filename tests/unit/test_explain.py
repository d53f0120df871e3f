"""`explain`: what became of a chunk, and who asked for it."""

import json
import re

import pytest

from specprefill_sgl.cli import heatmap
from specprefill_sgl.playground import explained, page
from specprefill_sgl.playground.explained import Fate
from specprefill_sgl.playground.prompt import Prompt, compose, read
from tests.support.tiny_models import tokenizer

VOTES = {"tokens": [7, 8], "positions": [3, 4], "chunks": [[0.5, 0.0], [0.1, 0.4]]}  # of a prompt of four tokens
IDS = [1, 2, 3, 7]
REPLY = {"chunk_size": 3, "scores": [0.5, 0.4], "positions": [0, 1, 2], "revived_tokens": 0}


def _decode(ids):
    return "<" + " ".join(map(str, ids)) + ">"


def _found(asked=(), **changes):
    return explained.chunks(Prompt(IDS, None, "", _decode), REPLY | changes, list(asked))


def test_each_query_with_what_it_wants_most():
    asked = explained.queries(VOTES, 4, _decode)
    found = _found(asked)
    assert [chunk.fate for chunk in found] == [Fate.KEPT, Fate.DROPPED]
    lines = [line.split() for line in heatmap.wishes(found, asked).splitlines()]
    assert [line[:5] for line in lines] == [["'<7>'", "3", "->", "chunk", "0,"], ["'<8>'", "decoded", "->", "chunk", "1,"]]
    assert [line[5] for line in lines] == ["kept,", "dropped,"]


def test_a_chunk_names_who_asked_for_it():
    found = _found(explained.queries(VOTES, 4, _decode))
    assert found[0].voters == ("'<7>' 3", "'<8>' decoded")
    assert found[1].voters == ("'<8>' decoded",)  # the other gives it nothing


def test_a_token_that_votes_twice_is_named_once():
    """The prompt's last one, in the window and before what is decoded."""
    twice = {"tokens": [7, 7], "positions": [3, 3], "chunks": [[0.5, 0.1], [0.4, 0.2]]}
    assert _found(explained.queries(twice, 4, _decode))[0].voters == ("'<7>' 3",)


def test_a_query_of_another_vocabulary_has_no_text():
    (query,) = explained.queries({"tokens": [-1], "positions": [4], "chunks": [[0.1]]}, 4, _decode)
    assert query.name == "? decoded"


def test_what_returned_is_told_from_what_was_kept():
    """It is prefilled after what was kept, before the prompt's last token."""
    ids = list(range(12))
    reply = {"chunk_size": 3, "scores": [1.0, 2.0, 3.0, 4.0], "positions": [6, 7, 8, 9, 10, 0, 1, 2, 11], "revived_tokens": 3}
    found = explained.chunks(Prompt(ids, None, "", _decode), reply, [])
    assert [chunk.fate for chunk in found] == [Fate.REVIVED, Fate.DROPPED, Fate.KEPT, Fate.KEPT]


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_pieces_are_the_prompt(size):
    """Also where a character takes several tokens."""
    text = "plain text, Ünïcödé, 漢字 and 🙂🙂, \x00 \r\n end"
    prompt = read(tokenizer(), text)
    assert "".join(prompt.pieces(size)) == text
    assert len(prompt.pieces(size)) == -(-len(prompt.ids) // size)


def test_the_page_holds_its_data_as_data():
    evil = "</script><script>alert(1)</script><!--"
    found = explained.chunks(Prompt(IDS, None, "", lambda ids: evil), REPLY, [])
    html = page.standalone(explained.plain(found, REPLY))
    assert evil not in html
    (data,) = re.findall(r'<script type="application/json" id="explained">(.*?)</script>', html, re.DOTALL)
    assert json.loads(data)["chunks"] == [evil, evil]
    assert "src=" not in html
    assert '<link rel="stylesheet"' not in html


def test_a_question_stands_after_its_document():
    assert compose(tokenizer(), "a document", "a question", chat=False).text == "a document\n\na question"
    assert compose(tokenizer(), "", "a question", chat=False).text == "a question"
