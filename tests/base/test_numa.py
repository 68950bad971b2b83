"""NUMA nodes as the kernel describes them, and command lines that keep to one."""

import shlex

import pytest

from mlxhog.base.numa import Node, nodes, numactl, numbers, require_numactl
from mlxhog.cli import cluster, main
from mlxhog.errors import EnvironmentLacks


def describe(root, number, cores, kilobytes):
    folder = root / f"node{number}"
    folder.mkdir()
    (folder / "cpulist").write_text(f"{cores}\n")
    (folder / "meminfo").write_text(
        f"Node {number} MemTotal:  {kilobytes} kB\nNode {number} MemFree:  1 kB\n"
    )


def test_nodes_have_the_cores_that_this_process_may_use_and_their_memory(tmp_path):
    describe(tmp_path, 10, "4-7", 2048)
    describe(tmp_path, 0, "0-1,3", 1024)
    (tmp_path / "node_list").mkdir()  # other files of the kernel
    assert nodes(tmp_path, frozenset({0, 3, 5, 9})) == (
        Node(0, (0, 3), 1024 * 1024),
        Node(10, (5,), 2048 * 1024),
    )


def test_a_node_without_memory_or_without_usable_cores_is_left_out(tmp_path):
    describe(tmp_path, 0, "0-1", 1024)
    describe(tmp_path, 1, "", 1024)
    describe(tmp_path, 2, "2-3", 0)
    describe(tmp_path, 3, "4", 1024)
    assert [node.number for node in nodes(tmp_path, frozenset(range(4)))] == [0]


def test_a_system_that_describes_no_nodes_has_none(tmp_path):
    assert nodes(tmp_path / "absent") == ()


@pytest.mark.parametrize(
    ("text", "listed"), [("0", {0}), ("0-2,5\n", {0, 1, 2, 5}), ("", set()), ("3,1-1", {1, 3})]
)
def test_lists_of_the_kernel_are_read(text, listed):
    assert numbers(text) == listed


def test_a_command_is_kept_to_the_cores_and_the_memory_of_its_node():
    assert numactl(Node(1, (4, 6), 1), ["mlxhog", "train"]) == [
        "numactl", "--physcpubind=4,6", "--membind=1", "--", "mlxhog", "train",
    ]  # fmt: skip


def test_without_numactl_the_package_is_named(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(EnvironmentLacks, match="apt install numactl"):
        require_numactl()


def test_a_cluster_of_nodes_has_a_command_for_each_that_stays_on_it(monkeypatch, capsys):
    two = Node(0, (0, 1), 1024), Node(1, (2, 3), 1024)
    monkeypatch.setattr(cluster, "nodes", lambda: two)
    monkeypatch.setattr(cluster, "require_numactl", lambda: None)
    assert cluster.numa(["--address", "127.0.0.1:8601"]) == 0
    first, second = (shlex.split(line) for line in capsys.readouterr().out.splitlines())
    assert second[:4] == ["numactl", "--physcpubind=2,3", "--membind=1", "--"]
    assert first[4:] == [
        "mlxhog", "train", "--cluster", "127.0.0.1:8601", "--cluster-machine", "node0",
    ]  # fmt: skip
    assert cluster.numa(["--token", "a word"]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert line.startswith("MLXHOG_CLUSTER_TOKEN='a word' numactl ")


def test_the_commands_for_nodes_have_no_option_of_the_lighthouse(capsys):
    for option in (["--json"], ["--heartbeat", "1s"], ["--join-timeout", "20s"]):
        assert main(["cluster", "numa", *option]) == 2
        assert f"no flag '{option[0]}'" in capsys.readouterr().err


def test_a_system_without_nodes_gets_the_command_without_them(monkeypatch, capsys):
    monkeypatch.setattr(cluster, "nodes", lambda: ())
    assert main(["cluster", "numa", "--address", "127.0.0.1:8601"]) == 3
    output = capsys.readouterr()
    assert output.out == ""
    assert "no NUMA nodes" in output.err
    assert "mlxhog train --cluster 127.0.0.1:8601" in output.err
