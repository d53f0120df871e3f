"""Starting servers: which port they get."""

import socket

from sglang.srt.utils import network

from benchmarks import launch


def test_a_port_in_use_is_passed_over(monkeypatch):
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in (first, second)]
        monkeypatch.setattr(network.random, "sample", lambda *_: ports)
        assert launch.free_port() not in ports
        second.close()
        assert launch.free_port() == ports[1]


def test_no_port_is_one_that_the_system_hands_out():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        assert launch.free_port() < one.getsockname()[1]
