"""Where protected messages are, given what a chat template did to the conversation."""

import pytest

from specprefill_sgl.hooks.roles import spans

ENDS = [0, 10, 30, 35, 60]  # of four messages in 64 tokens


def _spans(wanted, unknown=(), lost=()):
    found = spans(
        wanted,
        lambda count: None if count in unknown else ENDS[count],
        lambda index, start, end: index not in lost and start <= ENDS[index] and end >= ENDS[index + 1],
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
