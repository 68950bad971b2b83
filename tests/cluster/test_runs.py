"""Whole runs in a cluster: sidecars and machines are killed, and no token is lost unnoticed.

Machines that join, die and come again are the soak of `tests/soak/cluster.py`.
"""

import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest

from mlxhog.checkpoint import checkpoint, formats
from mlxhog.checkpoint.run import list_runs
from mlxhog.training.supervisor.training import train
from tests.another_process import Running
from tests.cluster import machines as groups
from tests.cluster.members import Lighthouse
from tests.cluster.rounds import Audit, is_balanced, part_of, rounds_in
from tests.cluster.test_sidecar import let_sidecars_open
from tests.threads import LIMIT_S, wait_until
from tests.training.small import let_no_worker_finish, small_config

FOREVER = 10**6


def options_of(address, **more):
    """Options of a run in a cluster; its worker leaves the cores to others."""
    return {
        "cluster": address,
        "round_every": 0.3,
        "steps": FOREVER,
        "inject_stragglers": "0=4",
        **more,
    }


@pytest.fixture
def _one_machine(monkeypatch):
    """Sidecars open a cluster of one machine, without a network."""
    let_sidecars_open(monkeypatch, groups.alone)


@pytest.mark.usefixtures("_one_machine")
def test_a_run_ends_with_a_round_of_all_that_it_has_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("mlxhog.cluster.sidecar.LAST_ROUND_S", LIMIT_S)
    is_over = False

    def look(progress):
        nonlocal is_over
        rounds = rounds_in(tmp_path)
        if not is_over and len(rounds) > 2 and any(one["tokens"] for one in rounds):
            is_over = True
            os.kill(os.getpid(), signal.SIGINT)

    options = options_of("127.0.0.1:8600", round_every=0.05)
    assert train(small_config(tmp_path, **options), observer=look).status == "interrupted"
    part = part_of(tmp_path)
    assert part["tokens_committed"] == part["tokens_trained"] > 0
    assert sum(one["tokens"] for one in rounds_in(tmp_path)) == part["tokens_trained"]


@pytest.mark.slow
@pytest.mark.usefixtures("_one_machine")
def test_a_run_whose_workers_do_not_finish_their_step_is_done_and_saved(tmp_path, monkeypatch):
    let_no_worker_finish(monkeypatch)
    options = options_of("127.0.0.1:8600", steps=None, time="500ms", inject_stragglers=None)
    result = train(small_config(tmp_path, **options))
    assert result.status == "done"
    assert result.checkpoint is not None
    assert is_balanced(part_of(tmp_path))


def _train(root, options):
    """In a process, as on a machine of its own."""
    output = os.open(root / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    train(small_config(root, **options))


def call_of_two(roots, **options):
    """Let two machines train until they had a round together, then stop both.

    The second starts after a round of the first, so the first continues from its own checkpoint.
    """
    machines, before = [], {}

    def has_round(root, members):
        for of, one in zip(roots, machines, strict=False):  # the second may not have started
            assert one.poll() is None, (of / "output.txt").read_text()
        can_save = any(root.glob("runs/*/metrics.jsonl"))
        rounds = rounds_in(root)[before[root] :]
        return can_save and any(x["members"] >= members and x["tokens"] for x in rounds)

    with Lighthouse() as light:
        try:
            for root in roots:
                root.mkdir(exist_ok=True)
                before[root] = len(rounds_in(root))  # of the call that is resumed
                machines.append(Running(_train, root, options_of(light.address, **options)))
                wait_until(partial(has_round, root, len(machines)))
            wait_until(partial(has_round, roots[0], 2))
            for one in machines:
                one.send_signal(signal.SIGINT)
            for root, one in zip(roots, machines, strict=True):
                assert one.wait(LIMIT_S) == 0, (root / "output.txt").read_text()
        finally:
            for one in machines:
                one.kill()
                one.wait(LIMIT_S)
    return [rounds_in(root)[before[root] :] for root in roots], list(map(part_of, roots))


@pytest.mark.slow
@pytest.mark.parametrize("copied", [False, True])
def test_a_cluster_that_was_stopped_resumes_from_the_checkpoints_of_its_machines(tmp_path, copied):
    pytest.importorskip("torchft")
    roots = [tmp_path / name for name in "ab"]
    before, stopped = call_of_two(roots)
    if copied:  # both have the run of the first
        shutil.rmtree(roots[1] / "runs")
        shutil.copytree(roots[0] / "runs", roots[1] / "runs")
    roots.sort(key=lambda root: -part_of(root)["round"])
    newest = part_of(roots[0])
    after, parts = call_of_two(roots, resume="latest")
    assert all(is_balanced(part) for part in stopped + parts)
    for lines in (before, after):
        audit = Audit.of(lines)
        assert audit.unequal == audit.unbalanced == 0
        assert {one["round"] for one in lines[0]} & {one["round"] for one in lines[1]}
    last = max(parts, key=lambda part: part["round"])
    assert last["round"] > newest["round"]
    more = sum(part["tokens_committed"] for part in parts)
    assert 0 <= last["cluster_tokens"] - newest["cluster_tokens"] <= more


@pytest.mark.slow
def test_machines_exchange_adapters_and_leave_the_base_on_each(tmp_path):
    pytest.importorskip("torchft")
    (tmp_path / "base").mkdir()
    base = train(small_config(tmp_path / "base", steps=2)).checkpoint
    roots = [tmp_path / name for name in "ab"]
    adapter = {"init_from": str(base), "model": "auto", "adapter": "lora(rank=2)"}
    lines, parts = call_of_two(roots, **adapter)
    assert all(is_balanced(part) for part in parts)
    assert Audit.of(lines).unequal == 0
    frozen = formats.open(Path(str(base))).tensors.values()
    assert 0 < parts[0]["bytes"] < len(lines[0]) * sum(one.nbytes for one in frozen) / 4
    assert all(formats.open(newest_checkpoint(root)).base is not None for root in roots)


def newest_checkpoint(root):
    """The last checkpoint of the newest run below a folder."""
    (run,) = list_runs(root / "runs")
    return checkpoint.latest(run)
