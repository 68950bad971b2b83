"""`mlxhog serve`, `dashboard` and `cluster`: servers until a signal."""

import os
import secrets
import sys
from dataclasses import dataclass
from functools import partial
from time import sleep
from typing import TYPE_CHECKING

from mlxhog.base.http_server import listen, url_of
from mlxhog.cli.flags import Json, OneRun, Plugins, run_argument
from mlxhog.cli.frame import Report, command
from mlxhog.cluster.rendezvous import TOKEN_VARIABLE, check_torchft, new_token, parse_address
from mlxhog.config.options import argument, option
from mlxhog.serving.server.config import ServeConfig

if TYPE_CHECKING:
    from mlxhog.serving.server.served_model import ServedModel


@dataclass(frozen=True, kw_only=True)
class _Serve(Plugins, Json):
    model: str = run_argument("RUN_OR_CHECKPOINT")


@command("serve", writes=True)
def serve(words: _Serve, config: ServeConfig) -> int:
    """Serve a model to clients of OpenAI's interface; a run in progress with its newest weights.

    Examples:
        serve latest
        serve latest --port 8400 --mode pinned_per_sequence --backend mlx:cpu
        serve exported/ --host 0.0.0.0  # with MLXHOG_API_KEY in the environment
        serve latest --allow-origin https://chat.example
    """
    from mlxhog.serving.server.app import serve

    say = partial(print, file=sys.stderr, flush=True)

    def on_ready(url: str, served: "ServedModel") -> None:
        about = served.weights
        if about["note"]:
            say(about["note"])
        facts = {"url": url, "model": served.model.name, "pid": os.getpid()}
        facts |= {name: about[name] for name in ("weights", "version")}
        version = "" if facts["version"] is None else f", version {facts['version']},"
        text = (
            f"{facts['weights']}{version} at {url}, model {facts['model']}; to chat open "
            f"{url.removesuffix('v1')}; Ctrl-C ends"
        )
        Report(facts, text).print(json=words.json)

    serve(words.model, config, on_ready, say)
    say("ended")
    return 0


@dataclass(frozen=True, kw_only=True)
class _Dashboard(OneRun):
    run: str = run_argument("[RUN]", "latest")
    port: int = option(8322, "port of the server; 0 takes a free one", low=0, high=65535)


@command("dashboard", writes=True)
def dashboard(config: _Dashboard) -> int:
    """Serve a page that follows a run.

    Only this machine can open it; from another one: ssh -L 8322:127.0.0.1:8322 HOST. The printed
    link has a token for the page's buttons: save a checkpoint, write a sample, stop the run. Ctrl-C
    ends the dashboard, not the run.

    Examples:
        dashboard
        dashboard latest --port 8400
    """
    followed = config.find(config.run)
    with listen("127.0.0.1", config.port) as listener:
        from mlxhog.base.app_server import AppServer
        from mlxhog.display.dashboard import Dashboard
        from mlxhog.display.record import RunRecord

        token, address = secrets.token_urlsafe(16), f"{url_of(listener)}/"
        server = AppServer(Dashboard(RunRecord(followed), token))
        facts = {"url": address, "token": token, "run": str(followed.directory)}
        text = f"dashboard of {followed.directory}\n  {address}#{token}"
        Report(facts, text).print(json=config.json)
        server.run(sockets=[listener])
    print("the dashboard has ended; it changed nothing in the run", file=sys.stderr)
    return 0


LOOK_S = 0.5  # between two looks for a signal


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


@command("cluster", writes=True)
def cluster(config: _Cluster) -> int:
    """Start a cluster on its first machine; the others join with mlxhog train --cluster.

    It may be killed and started again: meanwhile machines train on alone.

    Examples:
        cluster start
        cluster start --address 192.168.1.20:8600
    """
    address = parse_address(config.address)
    check_torchft()
    token = new_token(config.token, address)
    from mlxhog.cluster.torchft_group import Rendezvous

    rendezvous = Rendezvous(address, token)
    variable, where = f"{TOKEN_VARIABLE}={token} " if token else "", str(rendezvous.address)
    text = [f"on each machine, this one too:\n  {variable}mlxhog train --cluster {where}"]
    if token:
        text += [f"to start it again:\n  {variable}mlxhog cluster start --address {where}"]
    try:
        facts = {"address": where, "token": token, "pid": os.getpid()}
        Report(facts, text).print(json=config.json)
        while True:
            sleep(LOOK_S)  # a signal that a thread of torchft receives does not interrupt a wait
    except KeyboardInterrupt:
        print("ended; the machines train on alone", file=sys.stderr)
    finally:
        rendezvous.close()
    return 0
