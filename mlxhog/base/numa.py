"""The NUMA nodes of a Linux machine, and command lines that keep a process on one of them.

Memory of another node is slower, so a large machine may train one arena per node. numactl pins the
cores and the memory of a command; its children inherit both.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxhog.errors import EnvironmentLacks

NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        number: as numactl names it.
        cores: numbers of its cores that this process may use.
        memory_bytes: of its own memory.
    """

    number: int
    cores: tuple[int, ...]
    memory_bytes: int


def nodes(root: Path = NODES, usable: frozenset[int] | None = None) -> tuple[Node, ...]:
    """Return the nodes with cores and memory that this process may use, by their number.

    Args:
        root: the folder of the kernel's description; a system without it has no nodes to tell.
        usable: the cores of this process; None asks the system.
    """
    if usable is None:
        usable = frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ())
    found = []
    for folder in root.glob("node[0-9]*"):
        cores = tuple(sorted(numbers((folder / "cpulist").read_text()) & usable))
        memory_bytes = _memory_bytes((folder / "meminfo").read_text())
        if cores and memory_bytes:  # a node may have only one of them
            found.append(Node(int(folder.name.removeprefix("node")), cores, memory_bytes))
    return tuple(sorted(found, key=lambda node: node.number))


def numbers(text: str) -> frozenset[int]:
    """Read a list of the kernel, such as 0-3,8."""
    listed: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        listed.update(range(int(first), int(last or first) + 1))
    return frozenset(listed)


def numactl(node: Node, command: Sequence[str]) -> list[str]:
    """Return the command line that runs a command on the cores and the memory of a node.

    Only cores that this process may use are named: numactl refuses others.
    """
    cores = ",".join(map(str, node.cores))
    return ["numactl", f"--physcpubind={cores}", f"--membind={node.number}", "--", *command]


def require_numactl() -> None:
    """Refuse to begin without numactl.

    Raises:
        EnvironmentLacks: there is none.
    """
    if shutil.which("numactl") is None:
        raise EnvironmentLacks(
            "a run per NUMA node needs numactl: sudo apt install numactl, or dnf install numactl"
        )


def _memory_bytes(meminfo: str) -> int:
    totals = [line.split() for line in meminfo.splitlines() if "MemTotal:" in line]
    return int(totals[0][-2]) * 1024 if totals else 0
