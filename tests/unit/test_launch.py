"""Starting servers: which port they get."""

import socket

import pytest

from benchmarks import launch


def test_a_port_in_use_is_passed_over(monkeypatch):
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in (first, second)]
        monkeypatch.setattr(launch, "_PORTS", ports)
        with pytest.raises(launch.LaunchError, match="no TCP port is free"):
            launch.free_port()
        second.close()
        assert launch.free_port() == ports[1]


def test_no_port_is_one_that_the_system_hands_out():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        assert one.getsockname()[1] not in launch._PORTS
