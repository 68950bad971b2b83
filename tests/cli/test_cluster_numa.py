"""`mlxhog cluster numa`: a command for each NUMA node, which stays on it."""

import os
import shlex

from mlxhog.cli import cluster, main


def describe(root, number, cores, kilobytes):
    folder = root / f"node{number}"
    folder.mkdir()
    (folder / "cpulist").write_text(f"{cores}\n")
    (folder / "meminfo").write_text(
        f"Node {number} MemTotal:  {kilobytes} kB\nNode {number} MemFree:  1 kB\n"
    )


def test_nodes_have_the_cores_that_this_process_may_use_and_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 3, 5}, raising=False)
    describe(tmp_path, 10, "4-7", 2048)
    describe(tmp_path, 0, "0-1,3", 1024)
    describe(tmp_path, 1, "", 1024)
    describe(tmp_path, 2, "5", 0)
    describe(tmp_path, 3, "8", 1024)
    (tmp_path / "node_list").mkdir()  # other files of the kernel
    assert cluster.nodes(tmp_path) == {0: [0, 1, 3], 10: [5]}
    assert cluster.nodes(tmp_path / "absent") == {}


def test_a_cluster_of_nodes_has_a_command_for_each_that_stays_on_it(monkeypatch, capsys):
    monkeypatch.setattr(cluster, "nodes", lambda: {0: [0, 1], 1: [2, 3]})
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert main(["cluster", "numa", "--address", "127.0.0.1:8601", "--token", "a word"]) == 0
    first, second = (shlex.split(line) for line in capsys.readouterr().out.splitlines())
    token = "MLXHOG_CLUSTER_TOKEN=a word"
    assert second[:5] == [token, "numactl", "--physcpubind=2,3", "--membind=1", "--"]
    assert first[5:] == [
        "mlxhog", "train", "--cluster", "127.0.0.1:8601", "--cluster-machine", "node0",
    ]  # fmt: skip
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert main(["cluster", "numa"]) == 3
    assert "apt install numactl" in capsys.readouterr().err


def test_without_nodes_or_with_an_option_of_the_lighthouse_it_is_refused(monkeypatch, capsys):
    assert main(["cluster", "numa", "--join-timeout", "20s"]) == 2
    assert "no flag '--join-timeout'" in capsys.readouterr().err
    monkeypatch.setattr(cluster, "nodes", dict)
    assert main(["cluster", "numa", "--address", "127.0.0.1:8601"]) == 3
    assert "mlxhog train --cluster 127.0.0.1:8601" in capsys.readouterr().err
