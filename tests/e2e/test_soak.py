"""A random mix against a pool that is always too small: minutes of it, and shorter with two ranks and two replicas."""

import pytest

from benchmarks import launch
from benchmarks.soak.run import RECOVERY, run, slope


@pytest.mark.parametrize(
    ("minutes", "in_flight", "option"),
    [
        pytest.param(1.5, (8, 64), (), id="one"),
        pytest.param(3, (8, 64), (), id="one, longer", marks=pytest.mark.slow),
        pytest.param(0.5, (8, 24), ("--tp", "2"), id="tensor parallel", marks=pytest.mark.slow),
        pytest.param(0.5, (8, 24), ("--dp-size", "2"), id="data parallel", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_lost_or_wrong(tmp_path, pair_of, monkeypatch, minutes, in_flight, option):
    # the shipped draft has three heads: two ranks cannot share them
    pair = {"pair": pair_of("llama")} if "--tp" in option else {}
    if pair:
        monkeypatch.setattr(launch, "VOCABULARY", 500)  # that the other pair has
    outcome = _held_out(run(tmp_path, minutes, in_flight, seed=1, pool=4000, option=option, **pair))
    assert outcome.counts["asked again"] > 0


@pytest.mark.slow
def test_what_recovers_is_right_too(tmp_path):
    """With a pool in which whole prompts fit, and fewer requests: there is time for them."""
    outcome = _held_out(run(tmp_path, 4, (2, 24), seed=1, pool=16000, option=(), more=RECOVERY))
    assert outcome.counts["asked again in parts"] > 0
    assert all(outcome.counts[name] > 0 for name in ("revivals revived", "backfills exact", "backfills complete"))


def _held_out(outcome):
    print(outcome.counts, "MiB per minute:", slope(outcome.memory))
    assert outcome.problems == []
    assert outcome.counts["sparse"] > 0
    assert outcome.counts["retractions"] > 0
    return outcome
