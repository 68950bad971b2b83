"""A simulated box of two NUMA nodes: what `cluster numa` prints trains one model on both."""

import os
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress

import pytest

from mlxhog.cli import cluster, main
from tests.cluster.members import lighthouse
from tests.cluster.rounds import rounds_in
from tests.cluster.runs import FOREVER
from tests.processes import alive, below
from tests.threads import wait_until
from tests.training.small import small_config

pytest.importorskip("torchft")
NUMACTL = """\
import os, sys
end = sys.argv.index("--")
(cores,) = [word.partition("=")[2] for word in sys.argv[:end] if word.startswith("--physcpubind=")]
os.sched_setaffinity(0, map(int, cores.split(",")))
os.execvp(sys.argv[end + 1], sys.argv[end + 1 :])
"""
"""Stands in for numactl, which containers often forbid; of the memory it knows nothing."""


def cores_below(pid):
    """The cores of a process, and of those that it started."""
    listed = []
    for one in (pid, *below(pid)):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            listed.append(os.sched_getaffinity(one))
    return listed


def common(sides):
    """The digests of theta_s after rounds of two members that both have recorded."""
    digests = [
        {one["round"]: one["theta_s"] for one in side if one["members"] == 2} for side in sides
    ]
    return {number: [side[number] for side in digests] for number in digests[0].keys() & digests[1]}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="macOS has no such call")
def test_the_commands_for_two_nodes_train_one_model_each_on_its_cores(
    tmp_path, monkeypatch, capsys
):
    cores = sorted(os.sched_getaffinity(0))
    nodes = {0: [cores[0]], 1: [cores[-1]]}
    monkeypatch.setattr(cluster, "nodes", lambda: nodes)
    for name, text in (
        ("numactl", f"#!{sys.executable}\n{NUMACTL}"),
        ("mlxhog", f'#!/bin/sh\nexec {sys.executable} -m mlxhog "$@"\n'),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    config = tmp_path / "config.yaml"
    config.write_text(small_config(tmp_path, out="runs", steps=FOREVER, slow="0=4").to_yaml())
    roots = [tmp_path / f"node{number}" for number in nodes]
    with lighthouse() as (_, address), ExitStack() as stack:
        assert main(["cluster", "numa", "--address", address]) == 0
        commands = capsys.readouterr().out.splitlines()
        processes = []
        for root, command in zip(roots, commands, strict=True):
            root.mkdir()
            words = [*shlex.split(command), "--config", str(config), "--round-every", "0.3s"]
            with (root / "errors.txt").open("w") as errors:
                one = subprocess.Popen(words, cwd=root, stdout=subprocess.DEVNULL, stderr=errors)
            stack.enter_context(one)  # waits for its end
            stack.callback(one.kill)
            processes.append(one)

        def rounds():
            for root, one in zip(roots, processes, strict=True):
                assert one.poll() is None, (root / "errors.txt").read_text()
            return common([rounds_in(root) for root in roots])

        digests = wait_until(rounds)
        assert all(first == second for first, second in digests.values())
        for own, one in zip(nodes.values(), processes, strict=True):
            sets = cores_below(one.pid)
            assert len(sets) > 2  # a worker and a link at least
            assert all(each == set(own) for each in sets)
        started = [pid for one in processes for pid in below(one.pid)]
        for one in processes:
            one.send_signal(signal.SIGINT)
        for one in processes:
            one.wait(60)
        wait_until(lambda: not any(map(alive, started)))
