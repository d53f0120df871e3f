"""What the soak makes of an answer that is asked again: only a few shared first tokens excuse other positions."""

import pytest

from benchmarks.soak import again, recovered
from benchmarks.soak.clients import Asked

IDS = list(range(1000, 1200))


def _reply(positions, tokens=(7, 8), *, applied=True, reason=None):
    return {
        "output_ids": list(tokens),
        "meta_info": {"spec_prefill": {"applied": applied, "reason": reason, "positions": positions}},
    }


def _verdicts(monkeypatch, turns, answers):
    """Of turns (replies under load), given what is answered alone, in order; also what was asked."""
    left, asked = list(answers), []

    def generate(url, ids, custom, tokens):
        asked.append((ids, custom))
        return _reply([]) if custom == {"spec_prefill": False} else left.pop(0)

    monkeypatch.setattr(again, "generate", generate)
    monkeypatch.setattr(again.launch, "flush", lambda url: None)
    found = list(again.ask_again("url", [Asked(IDS, {}, one) for one in turns], replicas=2))
    assert not left
    return [one.counted for one in found], [bool(one.problem) for one in found], asked


CHOSEN = [32, 33, 199]


@pytest.mark.parametrize(
    ("alone", "wrong"), [(_reply(CHOSEN), False), (_reply(CHOSEN, (7, 9)), True)], ids=["equal", "other tokens"]
)
def test_the_same_positions(monkeypatch, alone, wrong):
    assert _verdicts(monkeypatch, [_reply(CHOSEN)], [alone])[:2] == (["asked again"], [wrong])


@pytest.mark.parametrize(
    ("alone", "wrong"),
    [(_reply([0, *CHOSEN]), False), (_reply([0, *CHOSEN], (7, 9)), True), (_reply(CHOSEN), True)],
    ids=["explained", "other tokens", "not explained"],
)
def test_a_token_more_at_the_beginning_is_cached_on_every_replica_first(monkeypatch, alone, wrong):
    counted, problems, asked = _verdicts(monkeypatch, [_reply([0, *CHOSEN])], [_reply(CHOSEN), alone])
    assert (counted, problems) == (["asked again with its beginning cached"], [wrong])
    assert [len(ids) for ids, _ in asked] == [200, 1, 1, 200]


@pytest.mark.parametrize(
    "loaded",
    [_reply(list(range(200)), applied=False, reason="draft_error"), _reply([*range(64), 199]), _reply([64, 199])],
    ids=["dense", "a long beginning", "other chunks"],
)
def test_nothing_else_is_excused(monkeypatch, loaded):
    _, problems, _ = _verdicts(monkeypatch, [loaded], [_reply(CHOSEN)])
    assert problems == [True]


def test_a_next_turn_that_kept_other_tokens_is_only_counted(monkeypatch):
    turns = [_reply(CHOSEN), _reply([*CHOSEN, 150])]
    counted, problems, _ = _verdicts(monkeypatch, turns, [_reply(CHOSEN), _reply([0, *CHOSEN])])
    assert (counted, problems) == (["asked again", "next turns that kept other tokens alone"], [False, False])


def _recovered(positions, tokens, **changes):
    reply = _reply(positions, tokens)
    reply["meta_info"]["spec_prefill"] |= {"revived_after": [], "backfilled": None, "revived_tokens": 0, **changes}
    return Asked(IDS, {}, reply)


@pytest.fixture
def computed_again(monkeypatch):
    """What is wrong, given what the request without recovery, and then the dense or the model's rest, would be."""

    def found(asked, alone, rest):
        answers = [alone, _reply(IDS, rest)]
        monkeypatch.setattr(recovered, "generate", lambda *arguments: answers.pop(0))
        monkeypatch.setattr(recovered, "model", lambda path: None)
        monkeypatch.setattr(recovered, "continued", lambda model, ids, positions, said, tokens: list(rest))
        monkeypatch.setattr(recovered.launch, "flush", lambda url: None)
        return recovered.wrong("url", asked)

    return found


@pytest.mark.parametrize("changes", [{"backfilled": 2}, {"revived_after": [2], "revived_tokens": 1}], ids=["exact", "revived"])
def test_answers_that_changed_are_computed_in_parts(computed_again, changes):
    positions = [32, 33, 199] if "backfilled" in changes else [32, 33, 40, 199]
    asked, alone = _recovered(positions, (7, 8, 9), **changes), _reply(CHOSEN, (7, 8))
    assert again.changes(asked.reply) == [2]
    assert computed_again(asked, alone, [9]) == ""
    assert "went on [9] after [2], then [6]" in computed_again(asked, alone, [6])
    assert "was answered" in computed_again(asked, _reply(CHOSEN, (7, 6)), [9])
    assert computed_again(asked, _reply([1, *CHOSEN], (7, 8)), [9])


def test_an_answer_goes_on_as_the_reference_has_it(pair_of, hugging_face):
    """Positions out of order, as what returns has them."""
    from tests.support.reference import greedy_revived
    from tests.support.tiny_models import prompt_ids

    target, ids = pair_of("llama")[0], prompt_ids(200, seed=4)
    positions, said = [*range(0, 40), *range(100, 140), *range(60, 80), 199], [3, 17, 4]
    wanted = greedy_revived(hugging_face(target), ids, [(3, positions)], len(ids), 12, said=said)
    assert [*said, *recovered.continued(recovered.model(str(target)), ids, positions, said, 9)] == wanted
