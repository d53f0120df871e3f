"""Where protected messages are, given what a chat template did to the conversation."""

import pytest

from specprefill_sgl.hooks.roles import runs, spans

ENDS = [0, 10, 30, 35, 60]  # of four messages in 64 tokens


def _spans(wanted, unknown=(), lost=()):
    found = spans(
        runs(wanted),
        lambda count: None if count in unknown else ENDS[count],
        lambda first, last, start, end: not set(range(first, last)) & set(lost) and start <= ENDS[first] and end >= ENDS[last],
        4,
        64,
    )
    return list(zip(found[::2], found[1::2], strict=True))


@pytest.mark.parametrize(
    ("wanted", "unknown", "lost", "expected"),
    [
        ([1, 0, 0, 0], (), (), [(0, 10)]),
        ([0, 1, 0, 1], (), (), [(10, 30), (35, 64)]),  # what follows the last message belongs to it
        ([1, 1, 0, 0], (), (), [(0, 30)]),
        ([1, 0, 0, 0], (1,), (), [(0, 30)]),  # a template that refuses a conversation of the system alone
        ([0, 0, 1, 0], (2, 3), (), [(10, 64)]),
        ([0, 1, 1, 0], (2,), (), [(10, 35)]),
        ([0, 1, 0, 0], (), (1,), [(0, 64)]),
        ([0, 0, 0, 0], (), (), []),
    ],
)
def test_spans_cover_the_wanted_messages(wanted, unknown, lost, expected):
    assert _spans([bool(one) for one in wanted], unknown, lost) == expected


def test_of_many_runs_the_nearest_are_joined():
    wanted = [number in {0, 2, 3, 9, 20, 22, 40} for number in range(50)]
    assert runs(wanted, most=8) == [(0, 1), (2, 4), (9, 10), (20, 21), (22, 23), (40, 41)]
    assert runs(wanted, most=4) == [(0, 4), (9, 10), (20, 23), (40, 41)]
    assert runs(wanted, most=1) == [(0, 41)]
    assert runs([False] * 3) == []
