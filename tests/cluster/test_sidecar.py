"""A sidecar is replaced when it dies, and neither its life nor its death stops the workers."""

import itertools
import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mlxhog import train
from mlxhog.arena.control import ControlCommand
from mlxhog.cluster.sidecar import ROUNDS, Sidecar, SidecarJob
from mlxhog.errors import ConfigError
from mlxhog.training.supervisor import training as runs
from tests.cluster import machines as groups
from tests.cluster.machines import Machine, Table, choice
from tests.processes import alive
from tests.threads import LIMIT_S, wait_until
from tests.training.small import checkpoint_of, filled, small_config

pytestmark = pytest.mark.usefixtures("spawned_workers")


def let_sidecars_open(monkeypatch, open_group):
    """Let the sidecars of runs open a group of these tests."""
    make_plan = runs.make_plan

    def with_group(config, **how):
        plan = make_plan(config, **how)
        return replace(plan, sidecar=replace(plan.sidecar, open_group=open_group))

    monkeypatch.setattr(runs, "make_plan", with_group)


@pytest.fixture
def machine():
    one = Machine(Table(1), cluster=choice(round_every=0.02, outer_lr=1.0, outer_momentum=0.0))
    one.arena.counters.store("command", ControlCommand.TRAIN)
    yield one
    one.close()


@pytest.fixture
def start(machine, tmp_path):
    """Starts a sidecar in the second worker slot of the machine."""
    sidecars = []

    def begin(open_group, cluster=None):
        cluster = cluster or machine.cluster
        log = tmp_path / "run" / "logs" / "sidecar.log"
        log.parent.mkdir(parents=True)
        job = SidecarJob(cluster=cluster, identity=machine.identity, log=log, open_group=open_group)
        sidecars.append(Sidecar(machine.arena, job))
        sidecars[0].start(2)
        return sidecars[0]

    yield begin
    machine.arena.counters.store("command", ControlCommand.EXIT)
    for sidecar in sidecars:
        sidecar.stop(LIMIT_S)


def poll_until(sidecar, condition):
    """Watch a sidecar as its supervisor does."""
    wait_until(lambda: sidecar.poll() or condition(), what="a sidecar")


def on_its_life(sidecar):
    """Its messages, but for those on rounds that took long, as they may on a busy machine."""
    return [
        message for message in sidecar.messages if message.startswith(("the sidecar ", "back "))
    ]


@pytest.mark.slow
def test_a_killed_sidecar_is_replaced_and_the_next_continues_from_the_arena(machine, start):
    machine.train(1.0)
    sidecar = start(groups.alone)
    poll_until(sidecar, lambda: machine.own.words["rounds"] > 1)
    first = sidecar.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    machine.train(1.0)
    poll_until(sidecar, lambda: sidecar.pid not in (None, first))
    # If the first died amid a change, what it had not committed is lost, and so declared.
    poll_until(sidecar, lambda: not machine.own.uncommitted(200))
    poll_until(sidecar, lambda: len(on_its_life(sidecar)) > 1)
    assert machine.own.words["torn"] or not machine.own.words["lost"]
    ended, back = on_its_life(sidecar)
    assert "signal SIGKILL" in ended
    assert "trains alone" in ended
    assert back == "back in the cluster, in a round of 1 machines"
    assert not alive(first)


def test_rounds_and_log_are_in_the_folder_of_a_run_that_was_renamed(machine, start, tmp_path):
    sidecar, before, now = start(groups.alone), tmp_path / "run", tmp_path / "renamed" / "logs"
    poll_until(sidecar, (before / "logs" / ROUNDS).exists)
    before.rename(now.parent)
    size, first = (now / ROUNDS).stat().st_size, sidecar.pid
    poll_until(sidecar, lambda: (now / ROUNDS).stat().st_size > size + 1000)
    (now / "sidecar.log").write_text("of the first\n")
    os.kill(first, signal.SIGKILL)
    poll_until(sidecar, lambda: sidecar.pid not in (None, first))
    assert "of the first" in on_its_life(sidecar)[0]
    poll_until(sidecar, lambda: not (now / "sidecar.log").read_text())
    assert not before.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "why"),
    [(groups.refusing, "the token is wrong"), (groups.out_of_reach, "no rendezvous answers")],
)
def test_a_cluster_lost_after_the_start_is_reported_once_and_tried_again(
    machine, start, group, why
):
    machine.arena.counters.store("start_ns", 1)
    sidecar, pids = start(group), set()
    poll_until(sidecar, lambda: pids.add(sidecar.pid) or len(pids - {None}) > 2)
    (message,) = sidecar.messages
    assert why in message
    assert "trains alone" in message


def test_a_fault_of_the_program_is_reported_and_not_tried_again(start):
    sidecar = start(groups.faulty)
    poll_until(sidecar, lambda: bool(sidecar.messages))
    sidecar.poll()
    assert "please report it" in sidecar.messages[0]
    assert sidecar.pid is None


@pytest.mark.slow
def test_a_stopped_sidecar_is_killed_and_replaced(machine, start):
    sidecar = start(groups.alone)
    poll_until(sidecar, lambda: machine.own.words["rounds"] > 0)
    first = sidecar.pid
    os.kill(first, signal.SIGSTOP)
    hours = itertools.count(step=3600)  # between two looks at a sidecar that gives no sign of life
    sidecar._watched = SimpleNamespace(look=hours.__next__)
    poll_until(sidecar, lambda: sidecar.pid not in (None, first))
    assert "signal SIGKILL" in on_its_life(sidecar)[0]


@pytest.mark.slow
def test_a_sidecar_changes_no_parameter_during_a_pause(machine, start):
    # With outer_lr 1 a machine alone would add nothing, and the test could not fail.
    machine.cluster = choice(round_every=0.02, outer_lr=0.5, outer_momentum=0.0)
    sidecar = start(groups.alone)
    machine.train(1.0)
    machine.arena.counters.store("pause", 1)
    poll_until(sidecar, sidecar.is_idle)
    time.sleep(0.02)  # as the supervisor, which looks twice
    poll_until(sidecar, sidecar.is_idle)
    before = machine.theta
    asked = machine.arena.workers.entry(2).heartbeat_ns
    poll_until(sidecar, lambda: machine.arena.workers.entry(2).heartbeat_ns > asked)
    np.testing.assert_array_equal(machine.theta, before)
    machine.arena.counters.store("pause", 0)
    machine.train(1.0)
    poll_until(sidecar, lambda: machine.own.words["tokens"] == 200)


@pytest.mark.slow
def test_a_resumed_run_has_the_moments_of_its_workers_and_none_of_the_sidecar(
    tmp_path, monkeypatch
):
    let_sidecars_open(monkeypatch, groups.alone)
    options = {"workers": "torch:cpu*2", "steps": 12, "cluster": "127.0.0.1:8600"}
    first = train(small_config(tmp_path, **options))
    saved = checkpoint_of(first)
    assert saved.state["opt_steps"].keys() == {"1", "2"}
    with filled(small_config(tmp_path, resume=first.run, **options)) as (_, arena, said):
        assert not any("averaged" in message for message in said)
        for slot, steps in saved.state["opt_steps"].items():
            assert arena.workers.entry(int(slot)).opt_step == steps
            for name, view in arena.views(f"m.{slot}").items():
                np.testing.assert_array_equal(view, saved.optimizer[f"m.{slot}/{name}"])


@pytest.mark.slow
def test_a_machine_that_a_cluster_refuses_leaves_no_run(tmp_path, monkeypatch):
    let_sidecars_open(monkeypatch, groups.refusing)
    with pytest.raises(ConfigError, match="the token is wrong"):
        train(small_config(tmp_path, steps=3, cluster="127.0.0.1:8600"))
    assert not (tmp_path / "runs").exists()
