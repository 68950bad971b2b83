"""`mlxhog cluster`: the authority of a cluster, on its first machine."""

import os
import sys
from dataclasses import dataclass
from time import sleep

from mlxhog.cli.flags import Json
from mlxhog.cli.frame import command, print_json
from mlxhog.cluster.lighthouse import (
    TOKEN_VARIABLE,
    Lighthouse,
    check_torchft,
    new_token,
    parse_address,
)
from mlxhog.config.options import argument

LOOK_S = 0.5  # between two looks for a signal


@dataclass(frozen=True, kw_only=True)
class _Words(Json):
    action: str = argument("start", "begin", choices=("start",))


@command("cluster")
def run(words: _Words, options: Lighthouse) -> int:
    """Start a cluster on its first machine; the others join with mlxhog train --cluster.

    It may be killed and started again: meanwhile machines train on alone.

    Examples:
        cluster start
        cluster start --address 192.168.1.20:8600
        cluster start --address 192.168.1.20:8600 --join-timeout 30s
    """
    options.check()
    address = parse_address(options.address)
    check_torchft()
    token = new_token(options.token, address)
    from mlxhog.cluster.torchft_group import Authority

    authority = Authority(address, token, options)
    variable, where = f"{TOKEN_VARIABLE}={token} " if token else "", str(authority.address)
    try:
        if words.json:
            print_json({"address": where, "token": token, "pid": os.getpid()})
        else:
            print(f"on each machine, this one too:\n  {variable}mlxhog train --cluster {where}")
            if token:
                print(f"to start it again:\n  {variable}mlxhog cluster start --address {where}")
            sys.stdout.flush()
        while True:
            authority.set_clock()
            sleep(LOOK_S)  # a signal that a thread of torchft receives does not interrupt a wait
    except KeyboardInterrupt:
        print("ended; the machines train on alone", file=sys.stderr)
    finally:
        authority.close()
    return 0
