"""What a machine cannot join with, or cannot do, is said: the value, what it must be, a way out."""

import importlib.util
import socket
import time

import pytest

from mlxhog.cli import main
from mlxhog.cluster.link import slowness
from mlxhog.cluster.round import Outcome
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.training import run as runs
from tests.cluster.machines import Machine, Table, choice
from tests.cluster.test_lighthouse import unresolvable
from tests.pairs import each_of
from tests.training.small import small_config


@pytest.mark.parametrize(
    ("torchft", "address", "error", "words"),
    [
        (True, "mac.local:8600", ConfigError, "'mac.local' has no IPv4 address here; .*mDNS"),
        (False, "127.0.0.1:8600", EnvironmentLacks, r"\[cluster\].*brew install rust protobuf"),
    ],
)
def test_an_address_without_a_machine_or_a_lack_of_torchft_ends_a_run_before_its_workers_start(
    tmp_path, monkeypatch, torchft, address, error, words
):
    find = importlib.util.find_spec

    def find_spec(name):
        return (name if torchft else None) if name == "torchft" else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(socket, "getaddrinfo", unresolvable)
    with pytest.raises(error, match=words):
        runs.train(small_config(tmp_path, steps=3, cluster=address))


def test_a_wait_below_the_heartbeat_is_refused(capsys):
    assert main(["cluster", "start", "--join-timeout", "2", "--heartbeat", "2"]) == 2
    assert "--join-timeout 2 s is not above --heartbeat 2 s" in capsys.readouterr().err


@each_of(
    ("outcome", "cluster", "subject", "words"),
    [
        (Outcome.COMMITTED, choice(round_every=10.0), "slow",
         "a round took 14 s, longer than the 10 s between rounds"),
        (Outcome.COMMITTED, choice(round_every=60.0), None, ""),
        (Outcome.REFUSED, choice(round_every=1.0, cluster_timeout_s=8.0), "given up",
         "a round was given up after 14 s: a machine was stopped or unplugged"),
        (Outcome.REFUSED, choice(), None, ""),
    ],
)  # fmt: skip
def test_a_machine_that_is_too_slow_for_its_rounds_is_reported(outcome, cluster, subject, words):
    machine = Machine(Table(1))
    machine.own.words["joined_ns"] = time.monotonic_ns() - 14 * 10**9
    notes = slowness(machine.own, outcome, cluster)
    machine.close()
    assert list(notes) == ([subject] if subject else [])
    assert all(note.startswith(words) for note in notes.values())
