"""What is remembered of earlier prompts: found by hash, believed only by its ids, bounded."""

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specprefill_sgl.request import turns
from specprefill_sgl.request.turns import Turn, Turns
from specprefill_sgl.selection.budget import free_chunks
from specprefill_sgl.selection.choose import best_after
from specprefill_sgl.selection.chunks import cut, leading_run


def ids_of(*parts):
    return array("q", [token for part in parts for token in part])


def turn_of(ids, *answers, settings=(0.2, ()), namespace=()):
    return Turn(ids=ids, positions=np.arange(0, len(ids), 2), settings=settings, namespace=namespace, answers=list(answers))


PROMPT = range(1000, 1200)
ANSWER = array("q", range(7, 17))
NEW = range(500, 530)


def test_the_same_prompt_with_the_same_settings_is_found():
    known = Turns()
    turn = turn_of(ids_of(PROMPT))
    known.add(turn)
    assert known.repeated(ids_of(PROMPT), (0.2, ())) is turn
    assert known.repeated(ids_of(PROMPT), (0.3, ())) is None
    assert known.repeated(ids_of(PROMPT, [1]), (0.2, ())) is None
    assert known.repeated(ids_of(range(1001, 1201)), (0.2, ())) is None


@pytest.mark.parametrize(
    ("following", "end"),
    [
        ([*ANSWER, *NEW], len(PROMPT) + len(ANSWER)),
        ([*ANSWER[:-1], *NEW], len(PROMPT) + len(ANSWER) - 1),  # the token that ended the answer is not repeated
        (list(ANSWER), len(PROMPT) + len(ANSWER) - 1),
        ([*ANSWER[:-2], *NEW], None),
        (list(NEW), None),  # another question on the same document
        ([], None),
    ],
)
def test_a_next_turn_has_the_whole_prompt_and_its_answer_in_front(following, end):
    known = Turns()
    turn = turn_of(ids_of(PROMPT), ANSWER)
    known.add(turn)
    assert known.continued(ids_of(PROMPT, following)) == (None if end is None else (turn, end))


def test_an_answer_that_is_not_final_continues_nothing():
    known = Turns()
    known.add(turn_of(ids_of(PROMPT)))
    assert known.continued(ids_of(PROMPT, ANSWER, NEW)) is None


def test_the_longest_turn_wins():
    known = Turns()
    first = turn_of(ids_of(PROMPT), ANSWER)
    second = turn_of(ids_of(PROMPT, ANSWER, NEW), array("q", [3, 4]))
    known.add(second)
    known.add(first)
    ids = ids_of(PROMPT, ANSWER, NEW, [3, 4], NEW)
    assert known.continued(ids) == (second, len(ids) - len(NEW))


def test_colliding_hashes_are_not_believed():
    known = Turns(link=lambda before, block: 1)
    other, turn = turn_of(ids_of(range(2000, 2200)), ANSWER), turn_of(ids_of(PROMPT), ANSWER)
    known.add(other)
    assert known.repeated(ids_of(PROMPT), (0.2, ())) is None
    assert known.continued(ids_of(PROMPT, ANSWER, NEW)) is None
    known.add(turn)
    assert known.repeated(ids_of(PROMPT), (0.2, ())) is turn
    assert known.continued(ids_of(PROMPT, ANSWER, NEW))[0] is turn


def test_asked_again_a_turn_keeps_its_answers():
    known = Turns()
    turn = known.add(turn_of(ids_of(PROMPT), ANSWER))
    assert known.add(turn_of(ids_of(PROMPT))) is turn
    known.add_answer(turn, array("q", [3, 4, 5]))
    known.add_answer(turn, ANSWER)
    for answer in (ANSWER, [3, 4, 5]):
        assert known.continued(ids_of(PROMPT, answer, NEW)) == (turn, len(PROMPT) + len(answer))
    for number in range(turns.MAX_ANSWERS):
        known.add_answer(turn, array("q", [9, number]))
    assert known.continued(ids_of(PROMPT, ANSWER, NEW)) is None


def test_another_selection_of_the_same_prompt_takes_its_place():
    known = Turns()
    known.add(turn_of(ids_of(PROMPT), ANSWER))
    other = Turn(ids=ids_of(PROMPT), positions=np.arange(5), settings=(0.2, ()))
    assert known.add(other) is other
    assert known.repeated(ids_of(PROMPT), (0.2, ())) is other
    assert known.continued(ids_of(PROMPT, ANSWER, NEW)) is None


def test_two_answers_to_one_prompt_for_which_other_tokens_returned():
    """As of one request with n = 2: neither takes the other's place, nor that of the prompt as it is selected from anew."""
    known = Turns()
    first = known.add(turn_of(ids_of(PROMPT)))
    returned = [first.revived(np.arange(0, len(PROMPT), step)) for step in (3, 5)]
    answers = [ANSWER, array("q", [3, 4, 5])]
    for turn, answer in zip(returned, answers, strict=True):
        assert known.add(turn) is turn
        known.add_answer(turn, answer)
    for turn, answer in zip(returned, answers, strict=True):
        assert known.continued(ids_of(PROMPT, answer, NEW))[0] is turn
        assert known.add(first.revived(turn.positions)) is turn
    assert known.repeated(ids_of(PROMPT), (0.2, ())) is first
    assert [turn.is_revived for turn in (first, *returned)] == [False, True, True]


def test_a_turn_that_was_answered_is_not_discarded():
    known = Turns()
    first = known.add(turn_of(ids_of(PROMPT), ANSWER))
    returned = known.add(first.revived(np.arange(5)))
    for turn in (first, returned, returned):
        known.discard(turn)
    assert len(known) == 1
    assert known.continued(ids_of(PROMPT, ANSWER, NEW))[0] is first


def test_another_namespace_sees_nothing():
    for link in (lambda before, block: 1), (lambda before, block: hash((before, block))):
        known = Turns(link)
        turn = known.add(turn_of(ids_of(PROMPT), ANSWER, namespace=("a", None)))
        for namespace in ((), ("b", None), (None, "a")):
            assert known.repeated(ids_of(PROMPT), (0.2, ()), namespace) is None
            assert known.continued(ids_of(PROMPT, ANSWER, NEW), namespace) is None
        assert known.repeated(ids_of(PROMPT), (0.2, ()), ("a", None)) is turn
        assert known.continued(ids_of(PROMPT, ANSWER, NEW), ("a", None)) == (turn, len(PROMPT) + len(ANSWER))


def test_prompts_that_differ_in_their_last_tokens_are_all_known_and_forgotten_one_by_one(monkeypatch):
    """Many questions, shorter than a block, on one document."""
    document = range(1000, 1000 + 3 * turns.BLOCK)
    monkeypatch.setattr(turns, "MAX_TURNS", 50)
    known = Turns()
    prompts = [ids_of(document, [number] * (1 + number % 40)) for number in range(60)]
    for ids in prompts:
        known.add(turn_of(ids, ANSWER))
    found = [known.repeated(ids, (0.2, ())) is not None for ids in prompts]
    assert found == [False] * 10 + [True] * 50
    for number, ids in enumerate(prompts):
        continued = known.continued(ids_of(ids, ANSWER, NEW))
        assert (continued is not None and continued[0].ids == ids) == (number >= 10)


@given(st.data())
def test_the_table_holds_exactly_what_it_says(data):
    """Against a list: whatever is added, found and forgotten, in any order, also with colliding hashes."""
    prompts = [ids_of(range(n), [7] * m) for n in (64, 128, 130) for m in (0, 1, 3)]
    link = data.draw(st.sampled_from([lambda before, block: 1, lambda before, block: hash((before, block))]))
    known, model, limit = Turns(link), [], data.draw(st.integers(1, 6))
    before, turns.MAX_TURNS = turns.MAX_TURNS, limit
    try:
        for ids in data.draw(st.lists(st.sampled_from(prompts), max_size=30)):
            found = known.repeated(ids, (0.2, ()))
            assert (found is not None) == (ids in model)
            if ids in model:
                model.remove(ids)
            model = [*model, ids][-limit:]
            known.add(turn_of(ids))
        for ids in prompts:
            assert (known.repeated(ids, (0.2, ())) is not None) == (ids in model)
    finally:
        turns.MAX_TURNS = before


def test_the_table_is_bounded_and_forgets_the_least_recently_used(monkeypatch):
    monkeypatch.setattr(turns, "MAX_TOKENS", 3 * (len(PROMPT) + len(PROMPT) // 2))
    known = Turns()
    prompts = [ids_of(range(start, start + len(PROMPT))) for start in (0, 1000, 2000, 3000)]
    for ids in prompts[:3]:
        known.add(turn_of(ids))
    assert known.repeated(prompts[0], (0.2, ())) is not None
    known.add(turn_of(prompts[3]))
    assert [known.repeated(ids, (0.2, ())) is not None for ids in prompts] == [True, False, True, True]
    for _ in range(10):
        known.add(turn_of(prompts[3]))  # replaced, not piled up
    assert known.repeated(prompts[0], (0.2, ())) is not None
    known.clear()
    assert known.repeated(prompts[3], (0.2, ())) is None


def test_answers_count_too(monkeypatch):
    monkeypatch.setattr(turns, "MAX_TOKENS", 2 * (len(PROMPT) + len(PROMPT) // 2) + len(ANSWER))
    known = Turns()
    first, second = (known.add(turn_of(ids_of(range(start, start + len(PROMPT))))) for start in (0, 1000))
    known.add_answer(first, ANSWER)
    assert len(known) == 2
    known.add_answer(second, ANSWER)
    assert len(known) == 1
    known.add_answer(first, ANSWER[:3])  # forgotten, so nothing to count
    known.clear()
    known.add(second)
    assert len(known) == 1


def test_prompts_shorter_than_a_block_are_not_kept():
    known = Turns()
    known.add(turn_of(ids_of(range(10)), ANSWER))
    assert known.repeated(ids_of(range(10)), (0.2, ())) is None
    assert known.continued(ids_of(range(10), ANSWER, NEW)) is None


@given(st.data())
def test_selection_after_a_free_prefix_is_settled(data):
    """Who finds the kept prefix in a cache chooses the same again; the budget is for the rest."""
    count = data.draw(st.integers(2, 60))
    scores = np.array(data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count)), dtype=float)
    prompt = cut(count * 32 - data.draw(st.integers(0, 31)), chunk_size=32)
    unit = data.draw(st.sampled_from(["chunks", "tokens"]))
    ratio = data.draw(st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.9]))
    free = data.draw(st.integers(0, count - 1))
    chosen = best_after(free, scores, prompt, ratio, unit)
    assert list(chosen) == sorted(set(chosen))
    assert set(range(free)) <= set(chosen)
    assert chosen[-1] == count - 1
    run = leading_run(chosen)
    if run < count:
        rest = free_chunks(prompt.after(run), ratio, unit) + int(prompt.forced[run:].sum())
        assert len(chosen) == run + rest
        assert list(best_after(run, scores, prompt, ratio, unit)) == list(chosen)


@given(st.sets(st.integers(0, 40)))
def test_leading_run_counts_from_zero_to_the_first_gap(positions):
    run = leading_run(np.array(sorted(positions), dtype=np.int64))
    assert set(range(run)) <= positions
    assert run not in positions


def test_a_prompt_too_short_to_be_remembered_is_forgotten_too():
    known = Turns()
    known.forget(array("q", range(turns.BLOCK - 1)))
    assert known.repeated(array("q", range(turns.BLOCK - 1)), ()) is None
