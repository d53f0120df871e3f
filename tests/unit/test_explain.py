"""`explain`: who asked for which chunk."""

from specprefill_sgl.cli import heatmap

VOTES = {"tokens": [7, 8], "positions": [3, 4], "chunks": [[0.5, 0.0], [0.1, 0.4]]}  # of a prompt of four tokens
IDS = [1, 2, 3, 7]


def _decode(ids):
    return "<" + " ".join(map(str, ids)) + ">"


def test_each_query_with_what_it_wants_most():
    asked = heatmap.queries(VOTES, 4, _decode)
    found = heatmap.chunks(IDS, _decode, 3, [0.5, 0.4], [0, 1, 2], asked)
    assert [chunk.kept for chunk in found] == [True, False]
    lines = [line.split() for line in heatmap.wishes(found, asked).splitlines()]
    assert [line[:5] for line in lines] == [["'<7>'", "3", "->", "chunk", "0,"], ["'<8>'", "decoded", "->", "chunk", "1,"]]
    assert [line[5] for line in lines] == ["kept,", "dropped,"]


def test_a_chunk_names_who_asked_for_it():
    found = heatmap.chunks(IDS, _decode, 3, [0.5, 0.4], [0, 1, 2], heatmap.queries(VOTES, 4, _decode))
    assert found[0].voters == ("'<7>' 3", "'<8>' decoded")
    assert found[1].voters == ("'<8>' decoded",)  # the other gives it nothing
    assert "asked for by &#x27;&lt;8&gt;&#x27; decoded" in heatmap.page(found, "")


def test_a_query_of_another_vocabulary_has_no_text():
    (query,) = heatmap.queries({"tokens": [-1], "positions": [4], "chunks": [[0.1]]}, 4, _decode)
    assert query.name == "? decoded"
