"""Start a cluster, so that several machines train one model.

The command runs on the first machine; all of them join with mlxhog train --cluster. It may be
killed and started again: meanwhile each machine continues to train alone.

Examples:
    cluster start
    cluster start --address 192.168.1.20:8600
"""

import os
import sys
from dataclasses import dataclass
from time import sleep

from mlxhog.base.paths import quoted
from mlxhog.cli.frame import CommandResult, Json, argument, command, option
from mlxhog.cluster.rendezvous import TOKEN_VARIABLE, check_torchft, new_token, parse_address
from mlxhog.errors import ConfigError

POLL_S = 0.5  # between two looks for a signal


@dataclass(frozen=True, kw_only=True)
class _Cluster(Json):
    action: str = argument("start", "begin", choices=("start",))
    address: str = option(
        "127.0.0.1:8600", "HOST:PORT for the machines of the cluster; port 0 is any free port"
    )
    token: str = option(
        "",
        f"word that machines need to join; {TOKEN_VARIABLE} is safer, because other users of the "
        "machine do not see it; if other machines reach the address, a random one by default",
    )


@command(writes=True)
def run(config: _Cluster) -> int:
    address = parse_address(config.address)
    if address.is_own and address.host not in ("localhost", address.ip):
        raise ConfigError(
            f"the host {address.host} is {address.ip} here (see /etc/hosts), which no other "
            "machine reaches; name the IPv4 address by which the others reach it, or 127.0.0.1 "
            "for this machine alone"
        )
    check_torchft()
    token = new_token(config.token, address)
    from mlxhog.cluster.torchft_group import Rendezvous

    rendezvous = Rendezvous(address, token)
    variable = f"{TOKEN_VARIABLE}={quoted(token)} " if token else ""
    where = str(rendezvous.address)
    text = [f"on each machine, this one too:\n  {variable}mlxhog train --cluster {where}"]
    if token:
        text += [f"to start it again:\n  {variable}mlxhog cluster start --address {where}"]
    try:
        payload = {"address": where, "token": token, "pid": os.getpid()}
        CommandResult(payload, text).print(json=config.json)
        while True:
            sleep(POLL_S)  # a signal that a thread of torchft receives does not interrupt a wait
    except KeyboardInterrupt:
        print("the cluster has ended; each machine continues to train alone", file=sys.stderr)
    finally:
        rendezvous.close()
    return 0
