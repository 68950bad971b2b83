"""A cable is as slow as its link, and an unplugged machine is not reached."""

import subprocess
import sys
import time

import pytest
from cluster import cable as cables

from mlxhog.research.simulator.links import Link

LIMIT_S = 120.0

RECEIVE = """
import socket, sys
with socket.create_server((sys.argv[1], 8600)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    with connection:
        n = 0
        while chunk := connection.recv(65536):
            n += len(chunk)
            print(n, flush=True)
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 8600), timeout=100) as connection:
    connection.sendall(bytes(int(sys.argv[2])))
"""


@pytest.fixture(autouse=True)
def _machines():
    if (why := cables.lacking()) is not None:
        pytest.skip(why)


def test_machines_reach_each_other_through_the_cable_no_sooner_than_it_allows():
    link, n_bytes = Link(2e6, 0.02), 400_000
    with cables.Cable(link, machines=2) as cable:
        words = [sys.executable, "-c"]
        pipe = {"stdout": subprocess.PIPE}
        with cable.popen(0, [*words, RECEIVE, cable.address(0)], **pipe) as receiver:
            assert receiver.stdout.readline() == "ready\n"
            began = time.monotonic()
            with cable.popen(1, [*words, SEND, cable.address(0), str(n_bytes)]) as sender:
                assert sender.wait(LIMIT_S) == 0
            counts = [int(line) for line in receiver.stdout]
            assert counts[-1] == n_bytes
            assert time.monotonic() - began >= link.transfer_s(n_bytes)
        assert cable.sent[1] >= n_bytes
        assert cable.sent[0] < n_bytes / 2  # acknowledgements


def test_an_unplugged_machine_is_not_reached():
    with cables.Cable(Link(1e9), machines=2) as cable:
        cable.unplug(1)
        words = [sys.executable, "-c", SEND.replace("timeout=100", "timeout=0.5")]
        with cable.popen(1, [*words, cable.address(0), "1"], stderr=subprocess.PIPE) as sender:
            _, errors = sender.communicate(timeout=LIMIT_S)
        assert sender.returncode
        assert "TimeoutError" in errors
        assert cable.sent == (0, 0)
