"""`mlxhog cluster`: the authority of a cluster on its first machine; commands for NUMA nodes."""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from time import sleep

from mlxhog.cli.flags import Json, Part
from mlxhog.cli.frame import Report, command, print_json
from mlxhog.cluster.lighthouse import (
    TOKEN_VARIABLE,
    Lighthouse,
    check_torchft,
    parse_address,
    token_of,
)
from mlxhog.config.options import argument
from mlxhog.errors import ConfigError, EnvironmentLacks

LOOK_S = 0.5  # between two looks for a signal
ABOUT = (
    "Start a cluster on its first machine; the others join with mlxhog train --cluster. It may "
    "be killed and started again: meanwhile machines train on alone. For a Linux box with "
    "several NUMA nodes, cluster numa prints a command for each, which trains there."
)
EXAMPLES = (
    "cluster start",
    "cluster start --address 192.168.1.20:8600",
    "cluster start --address 192.168.1.20:8600 --join-timeout 30s",
    "cluster numa",
)
ABOUT_NUMA = """\
Print a command for each NUMA node of this machine, which trains there in the cluster at --address:
its cores and its memory are those of the node."""
EXAMPLES_NUMA = ("cluster numa", "cluster numa --address 127.0.0.1:8601")


@dataclass(frozen=True, kw_only=True)
class Words(Json):
    """What `mlxhog cluster` does."""

    action: str = argument("start|numa", "begin, or print commands", choices=("start", "numa"))


@command("cluster", ABOUT, EXAMPLES, Words, Lighthouse)
def run(words: Words, options: Lighthouse) -> int:
    """Be the authority until a signal."""
    if words.action == "numa":
        raise ConfigError("write numa first: mlxhog cluster numa --address HOST:PORT")
    options.check()
    address = parse_address(options.address)
    check_torchft()
    token = token_of(options.token, address)
    from mlxhog.cluster.torchft_group import Authority

    authority = Authority(address, token, options)
    try:
        _say(str(authority.address), token, words.json)
        while True:
            authority.set_clock()
            sleep(LOOK_S)  # a signal that a thread of torchft receives does not interrupt a wait
    except KeyboardInterrupt:
        print("ended; the machines train on alone", file=sys.stderr)
    finally:
        authority.close()
    return 0


NODES = Path("/sys/devices/system/node")


@command("cluster numa", ABOUT_NUMA, EXAMPLES_NUMA, Part(Lighthouse, ("address", "token")))
def numa(options: Lighthouse) -> Report:
    """Print the commands; numactl pins cores and memory of a command and of its children."""
    address = parse_address(options.address)
    if not (on := nodes()):
        raise EnvironmentLacks(
            f"this system describes no NUMA nodes in {NODES}; train without them: mlxhog train "
            f"--cluster {address}"
        )
    if shutil.which("numactl") is None:
        raise EnvironmentLacks(
            "a run per NUMA node needs numactl: sudo apt install numactl, or dnf install numactl"
        )
    secret = f"{TOKEN_VARIABLE}={shlex.quote(options.token)} " if options.token else ""
    train = f"mlxhog train --cluster {address} --cluster-machine node"
    lines = [
        f"{secret}numactl --physcpubind={','.join(map(str, cores))} --membind={number} -- "
        f"{train}{number}"
        for number, cores in sorted(on.items())
    ]
    return Report(lines, text=lambda: "\n".join(lines))


def nodes(root: Path = NODES) -> dict[int, list[int]]:
    """Return the NUMA nodes with memory, each with the cores of it that this process may use.

    numactl refuses cores that it may not use. A system without the folder has no nodes to tell.
    """
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    found = {}
    for folder in root.glob("node[0-9]*"):
        parts = [
            part.split("-") for part in (folder / "cpulist").read_text().strip().split(",") if part
        ]
        cores = {core for part in parts for core in range(int(part[0]), int(part[-1]) + 1)}
        memory = (folder / "meminfo").read_text().partition("MemTotal:")[2].split()
        if cores & usable and memory and memory[0] != "0":  # a node may have only one of them
            found[int(folder.name.removeprefix("node"))] = sorted(cores & usable)
    return found


def _say(address: str, token: str, as_json: bool) -> None:
    """Print how machines join."""
    if as_json:
        print_json({"address": address, "token": token, "pid": os.getpid()})
        return
    variable = f"{TOKEN_VARIABLE}={token} " if token else ""
    print(f"on each machine, this one too:\n  {variable}mlxhog train --cluster {address}")
    if token:
        print(f"to start it again:\n  {variable}mlxhog cluster start --address {address}")
    sys.stdout.flush()
