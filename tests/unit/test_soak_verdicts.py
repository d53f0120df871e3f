"""What the soak makes of an answer that is asked again: only a few shared first tokens excuse other positions."""

import pytest

from benchmarks.soak import again
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
