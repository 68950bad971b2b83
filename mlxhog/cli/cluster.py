"""`mlxhog cluster`: the authority of a cluster on its first machine; commands for NUMA nodes."""

import os
import shlex
import sys
from dataclasses import dataclass
from time import sleep

from mlxhog.base.numa import NODES, nodes, numactl, require_numactl
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


@command("cluster numa", ABOUT_NUMA, EXAMPLES_NUMA, Part(Lighthouse, ("address", "token")))
def numa(options: Lighthouse) -> Report:
    """Print the commands."""
    address = parse_address(options.address)
    if not (on := nodes()):
        raise EnvironmentLacks(
            f"this system describes no NUMA nodes in {NODES}; train without them: mlxhog train "
            f"--cluster {address}"
        )
    require_numactl()
    secret = f"{TOKEN_VARIABLE}={shlex.quote(options.token)} " if options.token else ""
    words = ["mlxhog", "train", "--cluster", str(address), "--cluster-machine"]
    lines = [secret + shlex.join(numactl(node, [*words, f"node{node.number}"])) for node in on]
    return Report(lines, text=lambda: "\n".join(lines))


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
