"""Spans on an accelerator are counted by events; one waits for as few of them as possible."""

from types import SimpleNamespace

import pytest
import torch

from specprefill_sgl.observability import timer


class _Event:
    """An accelerator's event, on a clock that each record moves by one."""

    clock = 0

    def __init__(self, enable_timing):
        assert enable_timing
        self.waited_for = False

    def record(self):
        _Event.clock += 1
        self.at = _Event.clock

    def synchronize(self):
        self.waited_for = True

    def elapsed_time(self, other):
        return other.at - self.at


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(Event=_Event))
    return timer.DeviceTimer(torch.device("cuda"), "x")


def _spans(timed, count):
    for _ in range(count):
        with timed.span():
            pass
    return [last for _, last in timed._events]


def test_all_spans_but_the_last_are_waited_for(accelerator):
    accelerator.keep_up()
    _spans(accelerator, 1)
    accelerator.keep_up()
    ends = _spans(accelerator, 2)
    accelerator.keep_up()
    assert [end.waited_for for end in ends] == [False, True, False]  # on one stream, what came before is done then too


def test_the_sum_waits_for_the_last_span_only(accelerator):
    ends = _spans(accelerator, 3)
    assert accelerator.total_ms() == 3
    assert [end.waited_for for end in ends] == [False, False, True]


def test_a_span_that_raises_counts():
    timed = timer.DeviceTimer(torch.device("cpu"), "x")
    with pytest.raises(KeyError), timed.span():
        raise KeyError
    assert timed.total_ms() > 0
