"""`mlxhog cluster`: the authority of a cluster on its first machine; commands for NUMA nodes."""

import json
import os
import shlex
import sys
from time import sleep

from mlxhog.base.numa import NODES, nodes, numactl, require_numactl
from mlxhog.cli.flags import Flags
from mlxhog.cluster.lighthouse import (
    TOKEN_VARIABLE,
    Lighthouse,
    check_torchft,
    parse_address,
    token_of,
)
from mlxhog.errors import ConfigError, EnvironmentLacks

LOOK_S = 0.5  # between two looks for a signal
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


def run(arguments: list[str]) -> int:
    """Run the command until a signal; returns its exit code."""
    if arguments[:1] == ["numa"]:
        return _numa(arguments[1:])
    flags = Flags(
        "cluster",
        "Start a cluster on its first machine; the others join with mlxhog train --cluster. It may "
        "be killed and started again: meanwhile machines train on alone. For a Linux box with "
        "several NUMA nodes, cluster numa prints a command for each, which trains there.",
        EXAMPLES,
        ("start|numa",),
    )
    flags.argument(
        "action", metavar="start|numa", choices=("start", "numa"), help="begin, or print commands"
    )
    flags.argument("--json", action="store_true", help="one JSON object when the cluster is ready")
    parsed, options = flags.read(Lighthouse, arguments)
    if parsed.other.action == "numa":
        raise ConfigError("write numa first: mlxhog cluster numa --address HOST:PORT")
    options.check()
    address = parse_address(options.address)
    check_torchft()
    token = token_of(options.token, address)
    from mlxhog.cluster.torchft_group import Authority

    authority = Authority(address, token, options)
    try:
        _say(str(authority.address), token, parsed.other.json)
        while True:
            authority.set_clock()
            sleep(LOOK_S)  # a signal that a thread of torchft receives does not interrupt a wait
    except KeyboardInterrupt:
        print("ended; the machines train on alone", file=sys.stderr)
    finally:
        authority.close()
    return 0


def _numa(arguments: list[str]) -> int:
    flags = Flags("cluster numa", ABOUT_NUMA, EXAMPLES_NUMA)
    flags.options(Lighthouse, ("address", "token"))
    options, _ = flags.parse(arguments).split(Lighthouse)
    address = parse_address(options.address)
    if not (on := nodes()):
        raise EnvironmentLacks(
            f"this system describes no NUMA nodes in {NODES}; train without them: mlxhog train "
            f"--cluster {address}"
        )
    require_numactl()
    secret = f"{TOKEN_VARIABLE}={shlex.quote(options.token)} " if options.token else ""
    words = ["mlxhog", "train", "--cluster", str(address), "--cluster-machine"]
    for node in on:
        print(secret + shlex.join(numactl(node, [*words, f"node{node.number}"])))
    return 0


def _say(address: str, token: str, as_json: bool) -> None:
    """Print how machines join."""
    if as_json:
        print(json.dumps({"address": address, "token": token, "pid": os.getpid()}), flush=True)
        return
    variable = f"{TOKEN_VARIABLE}={token} " if token else ""
    print(f"on each machine, this one too:\n  {variable}mlxhog train --cluster {address}")
    if token:
        print(f"to start it again:\n  {variable}mlxhog cluster start --address {address}")
    sys.stdout.flush()
