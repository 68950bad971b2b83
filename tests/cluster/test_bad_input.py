"""What a machine cannot join with, or cannot do, is said: the value, what it must be, a way out."""

import importlib.util
import socket
import time

import pytest

from mlxhog.cli import main
from mlxhog.cluster.lighthouse import parse_address
from mlxhog.cluster.link import slowness
from mlxhog.cluster.round import Outcome
from mlxhog.errors import ConfigError, EnvironmentLacks
from mlxhog.training import trainer
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
        trainer.train(small_config(tmp_path, steps=3, cluster="mac.local:8600"))


def test_without_torchft_a_run_ends_before_its_workers_start_and_names_the_extra(
    tmp_path, monkeypatch
):
    installed(monkeypatch, torchft=False)
    with pytest.raises(EnvironmentLacks, match=r"\[cluster\].*brew install rust protobuf"):
        trainer.train(small_config(tmp_path, steps=3, cluster="127.0.0.1:8600"))


@pytest.mark.parametrize("text", ["[::1]:8600", "fe80::1:8600"])
def test_an_ipv6_address_is_refused_with_the_way_to_its_ipv4_address(text):
    with pytest.raises(ConfigError, match="do not use IPv6; name its IPv4 address"):
        parse_address(text)


def test_a_wait_below_the_heartbeat_is_refused(capsys):
    assert main(["cluster", "start", "--join-timeout", "2", "--heartbeat", "2"]) == 2
    assert "--join-timeout 2 s is not above --heartbeat 2 s" in capsys.readouterr().err


def test_a_round_and_a_step_that_outlast_the_time_between_rounds_are_reported(machine):
    machine.own.words["joined_ns"] = time.monotonic_ns() - 14 * 10**9
    note = slowness(machine.own, Outcome.COMMITTED, choice(round_every=10.0))["slow"]
    assert note.startswith("a round took 14 s, longer than the 10 s between rounds")
    assert "--round-dtype bfloat16" in note
    minute = choice(round_every=60.0)
    assert slowness(machine.own, Outcome.COMMITTED, minute) == {}
    entry = machine.arena.workers.entry(1)
    entry.steps, entry.compute_ns = 2, 2 * 75 * 10**9
    note = slowness(machine.own, Outcome.COMMITTED, minute)["slow steps"]
    assert note.startswith("a step of this machine takes 1 min 15 s, longer than the 1 min")


def test_a_round_that_outlasts_the_limit_of_a_call_is_reported(machine):
    machine.own.words["joined_ns"] = time.monotonic_ns() - 14 * 10**9
    patient, quick = choice(), choice(round_every=1.0, cluster_timeout_s=8.0)
    note = slowness(machine.own, Outcome.REFUSED, quick)["given up"]
    assert note.startswith("a round was given up after 14 s: a machine was stopped or unplugged")
    assert "--cluster-timeout-s" in note
    assert slowness(machine.own, Outcome.REFUSED, patient) == {}
