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
from tests.training.small import small_config


@pytest.fixture
def machine():
    one = Machine(Table(1))
    yield one
    one.close()


def installed(monkeypatch, *, torchft):
    find = importlib.util.find_spec

    def find_spec(name):
        return (name if torchft else None) if name == "torchft" else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def test_an_address_without_a_machine_ends_a_run_before_its_workers_start(tmp_path, monkeypatch):
    installed(monkeypatch, torchft=True)
    monkeypatch.setattr(socket, "getaddrinfo", unresolvable)
    with pytest.raises(ConfigError, match="'mac.local' has no IPv4 address here; .*mDNS"):
        runs.train(small_config(tmp_path, steps=3, cluster="mac.local:8600"))


def test_without_torchft_a_run_ends_before_its_workers_start_and_names_the_extra(
    tmp_path, monkeypatch
):
    installed(monkeypatch, torchft=False)
    with pytest.raises(EnvironmentLacks, match=r"\[cluster\].*brew install rust protobuf"):
        runs.train(small_config(tmp_path, steps=3, cluster="127.0.0.1:8600"))


def test_a_wait_below_the_heartbeat_is_refused(capsys):
    assert main(["cluster", "start", "--join-timeout", "2", "--heartbeat", "2"]) == 2
    assert "--join-timeout 2 s is not above --heartbeat 2 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "cluster", "step_s", "subject", "words"),
    [
        (Outcome.COMMITTED, choice(round_every=10.0), 1, "slow",
         "a round took 14 s, longer than the 10 s between rounds"),
        (Outcome.COMMITTED, choice(round_every=60.0), 1, None, ""),
        (Outcome.COMMITTED, choice(round_every=60.0), 75, "slow steps",
         "a step of this machine takes 1 min 15 s, longer than the 1 min between rounds"),
        (Outcome.REFUSED, choice(round_every=1.0, cluster_timeout_s=8.0), 1, "given up",
         "a round was given up after 14 s: a machine was stopped or unplugged"),
        (Outcome.REFUSED, choice(), 1, None, ""),
    ],
)  # fmt: skip
def test_what_is_too_slow_for_its_rounds_is_reported(
    machine, outcome, cluster, step_s, subject, words
):
    machine.own.words["joined_ns"] = time.monotonic_ns() - 14 * 10**9
    entry = machine.arena.workers.entry(1)
    entry.steps, entry.compute_ns = 2, 2 * step_s * 10**9
    notes = slowness(machine.own, outcome, cluster)
    assert list(notes) == ([subject] if subject else [])
    assert all(note.startswith(words) for note in notes.values())
